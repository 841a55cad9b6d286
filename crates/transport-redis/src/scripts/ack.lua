-- Acknowledges entries that the consumer still owns. KEYS: stream, due, notes. ARGV: group, consumer, is a copy, ids…
-- Returns for each id: 1 when it was acknowledged, 0 when another consumer owns it, -1 when it is not pending.
local out = {}
for i = 4, #ARGV do
  local who = pending(KEYS[1], ARGV[1], ARGV[i])
  if who == ARGV[2] then
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
    redis.call('ZREM', KEYS[2], ARGV[i])
    redis.call('HDEL', KEYS[3], ARGV[i])
    if ARGV[3] == '1' then redis.call('XDEL', KEYS[1], ARGV[i]) end
    out[#out + 1] = 1
  else
    out[#out + 1] = who and 0 or -1
  end
end
return out
