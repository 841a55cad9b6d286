-- Publishes delayed messages that are due. KEYS: log, delayed. ARGV: maximum number.
-- Returns the ms until the next message is due, or -1.
local now = now_ms()
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', int(now), 'LIMIT', 0, ARGV[1])
for _, packed in ipairs(due) do
  redis.call('XADD', KEYS[1], '*', unpack(cmsgpack.unpack(string.sub(packed, 17))))
  redis.call('ZREM', KEYS[2], packed)
end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if not first[2] then return -1 end
return math.max(0, tonumber(first[2]) - now)
