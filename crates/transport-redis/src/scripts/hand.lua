-- Keyed: assigns waiting entries to the active member. KEYS: stream, due, owner.
-- ARGV: group, consumer, then id and attempt of each entry.
-- Returns 0 when the consumer is no longer active.
if redis.call('GET', KEYS[3]) ~= ARGV[2] then return 0 end
for i = 3, #ARGV, 2 do
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'RETRYCOUNT', ARGV[i + 1], 'JUSTID')
  redis.call('ZREM', KEYS[2], ARGV[i])
end
return 1
