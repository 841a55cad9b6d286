-- Registers a topic. KEYS: topics. ARGV: topic, channel.
if redis.call('SADD', KEYS[1], ARGV[1]) == 1 then
  redis.call('PUBLISH', ARGV[2], 'topic ' .. ARGV[1])
end
return 1
