-- Publishes with a dedup id or a delay. KEYS: log, delayed, dedup.
-- ARGV: dedup ms, due ms, may create, channel, topic, fields…
-- Returns {id, 1 when it is a duplicate}.
local window, due = tonumber(ARGV[1]), tonumber(ARGV[2])
if window > 0 then
  local was = redis.call('GET', KEYS[3])
  if was then return {was, 1} end
end
local id = ''
if due > now_ms() then
  local seq = redis.call('INCR', KEYS[2] .. ':seq')
  redis.call('ZADD', KEYS[2], due, string.format('%016.0f', seq) .. cmsgpack.pack({unpack(ARGV, 6)}))
  redis.call('PUBLISH', ARGV[4], 'delay ' .. ARGV[5])
elseif ARGV[3] == '1' then
  id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 6))
else
  id = redis.call('XADD', KEYS[1], 'NOMKSTREAM', '*', unpack(ARGV, 6))
  if not id then return {false, 0} end
end
if window > 0 then redis.call('SET', KEYS[3], id, 'PX', int(window)) end
return {id, 0}
