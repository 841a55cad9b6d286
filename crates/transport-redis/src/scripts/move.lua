-- Moves or deletes a group on a topic. KEYS: log, settings, due, notes, owner, replay, replay's due and notes, floors.
-- ARGV: group, start ('new', 'id ID', 'delete').
local epoch = tonumber(redis.call('HGET', KEYS[2], 'epoch') or '0')
local function name(n) return n > 0 and ARGV[1] .. '#' .. int(n) or ARGV[1] end
local exists = redis.call('EXISTS', KEYS[1]) == 1
if exists then redis.call('XGROUP', 'DESTROY', KEYS[1], name(epoch)) end
redis.call('DEL', KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8])
redis.call('HDEL', KEYS[9], name(epoch))
redis.call('HSET', KEYS[2], 'epoch', int(epoch + 1))
if ARGV[2] == 'delete' then
  redis.call('HDEL', KEYS[2], 'filters', 'version')
  -- Longer than any delivery of the old group may remain in flight: 7 days.
  redis.call('EXPIRE', KEYS[2], 604800)
  return 1
end
local start = string.match(ARGV[2], '^id (.*)$') or '$'
if exists and start ~= '$' then
  local last = '0-0'
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do if info[i] == 'last-generated-id' then last = info[i + 1] end end
  local function number(id)
    local m, s = string.match(id, '(%d+)-(%d+)')
    return tonumber(m), tonumber(s)
  end
  local am, as = number(last)
  local bm, bs = number(start)
  if am < bm or (am == bm and as < bs) then start = last end
end
redis.call('XGROUP', 'CREATE', KEYS[1], name(epoch + 1), start, 'MKSTREAM')
local filters = redis.call('HGET', KEYS[2], 'filters')
if filters then
  local latest
  for line in string.gmatch(filters, '[^\n]+') do latest = string.match(line, '^%S+ (.*)$') end
  redis.call('HSET', KEYS[2], 'filters', '0-0 ' .. latest)
  redis.call('HINCRBY', KEYS[2], 'version', 1)
end
return 1
