-- Trims a topic's log by age and number, never entries that a group still needs; records for each group the id up to
-- which it has settled everything.
-- KEYS: log, lock, floors. ARGV: age ms, maximum number, lock ms.
-- Returns {number trimmed, entries left, the group that holds most back or ''}; false when another client trimmed a
-- moment ago.
if not redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[3]) then return false end
if redis.call('EXISTS', KEYS[1]) == 0 then return {0, 0, ''} end
local function number(id)
  local m, s = string.match(id, '(%d+)-(%d+)')
  return tonumber(m), tonumber(s)
end
local function less(a, b)
  local am, as = number(a)
  local bm, bs = number(b)
  return am < bm or (am == bm and as < bs)
end
local needed, holder
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local is = {}
  for i = 1, #group, 2 do is[group[i]] = group[i + 1] end
  local from = is['last-delivered-id']
  local floor = from
  if is['pending'] > 0 then
    local oldest = redis.call('XPENDING', KEYS[1], is['name'])[2]
    if oldest and not less(from, oldest) then
      from = oldest
      local ms, seq = number(oldest)
      floor = seq > 0 and int(ms) .. '-' .. int(seq - 1) or int(ms - 1) .. '-18446744073709551615'
    end
  end
  redis.call('HSET', KEYS[3], is['name'], floor)
  if not needed or less(from, needed) then needed, holder = from, is['name'] end
end
local before = redis.call('XLEN', KEYS[1])
local old = int(math.max(0, now_ms() - tonumber(ARGV[1]))) .. '-0'
local limit = old
local held = ''
if needed and less(needed, old) then limit, held = needed, holder end
redis.call('XTRIM', KEYS[1], 'MINID', '~', limit)
local over = redis.call('XLEN', KEYS[1]) - tonumber(ARGV[2])
local rounds = 0
while over > 0 and rounds < 20 do
  rounds = rounds + 1
  local some = redis.call('XRANGE', KEYS[1], '-', needed or '+', 'COUNT', math.min(over + 1, 500))
  if #some < 2 then
    if needed then held = holder end
    break
  end
  redis.call('XTRIM', KEYS[1], 'MINID', some[#some][1])
  over = over - (#some - 1)
end
local left = redis.call('XLEN', KEYS[1])
return {before - left, left, held}
