-- Creates or updates a group on a topic. KEYS: log, settings, floors.
-- ARGV: group, start ('new', or 'id ID' with the last id that is not wanted), filters ('' keeps them), may create (0:
-- no, 1: yes, 2: only where it was not before).
-- Returns name, filters, version, last delivered id, 1 when the group was removed and is created again; false when it
-- is missing and may not be created.
local epoch = tonumber(redis.call('HGET', KEYS[2], 'epoch') or '0')
local name = ARGV[1]
if epoch > 0 then name = name .. '#' .. int(epoch) end
local function less(a, b)
  local am, as = string.match(a, '(%d+)-(%d+)')
  local bm, bs = string.match(b, '(%d+)-(%d+)')
  am, bm = tonumber(am), tonumber(bm)
  if am ~= bm then return am < bm end
  return tonumber(as) < tonumber(bs)
end
local exists = redis.call('EXISTS', KEYS[1]) == 1
local last, delivered = '0-0', nil
local function look()
  if not exists then return end
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
  end
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local is = {}
    for i = 1, #group, 2 do is[group[i]] = group[i + 1] end
    if is['name'] == name then delivered = is['last-delivered-id'] end
  end
end
look()
local lost = 0
if not delivered then
  -- A group that existed and is missing was removed, or its stream was: it continues after the last id that is known to
  -- be settled.
  local floor = redis.call('HGET', KEYS[3], name)
  if floor or redis.call('HEXISTS', KEYS[2], 'filters') == 1 then lost = 1 end
  if ARGV[4] == '0' or (ARGV[4] == '2' and lost == 1) then return false end
  local start = '$'
  local id = string.match(ARGV[2], '^id (.*)$')
  if lost == 1 then
    start = floor or '0-0'
    -- The floor belongs to an earlier stream of this name.
    if less(last, start) then start = '0-0' end
  elseif id then
    start = id
    if less(last, id) then start = last end
  elseif not exists then
    start = '0-0'
  end
  redis.call('XGROUP', 'CREATE', KEYS[1], name, start, 'MKSTREAM')
  exists = true
  look()
  if lost == 0 then redis.call('HDEL', KEYS[2], 'filters') end
  redis.call('HSET', KEYS[3], name, delivered)
end
local filters = redis.call('HGET', KEYS[2], 'filters')
if ARGV[3] ~= '' then
  local lines = {}
  for line in string.gmatch(filters or '', '[^\n]+') do lines[#lines + 1] = line end
  local latest = lines[#lines] and string.match(lines[#lines], '^%S+ (.*)$')
  if latest ~= ARGV[3] then
    local from = '0-0'
    if #lines > 0 then
      from = last
      local needed = delivered
      local oldest = redis.call('XPENDING', KEYS[1], name)[2]
      if oldest and less(oldest, needed) then needed = oldest end
      -- A line is useless when a later line replaces it for every entry that is still needed.
      while #lines > 1 and not less(needed, string.match(lines[2], '^%S+')) do table.remove(lines, 1) end
      if string.match(lines[#lines], '^%S+') == from then table.remove(lines) end
      if #lines == 0 then from = '0-0' end
    end
    lines[#lines + 1] = from .. ' ' .. ARGV[3]
    filters = table.concat(lines, '\n')
    redis.call('HSET', KEYS[2], 'filters', filters)
    redis.call('HINCRBY', KEYS[2], 'version', 1)
    redis.call('PERSIST', KEYS[2])
  end
end
return {name, filters or '', redis.call('HGET', KEYS[2], 'version') or '0', delivered, lost}
