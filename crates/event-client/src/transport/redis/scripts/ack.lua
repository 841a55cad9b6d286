-- Acknowledges what is still the consumer's. KEYS: stream, due, notes. ARGV: group, consumer, is a copy, ids…
-- Answers 1 for each that was, 0 for another's, -1 for what is not pending.
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
