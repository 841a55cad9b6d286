-- Keyed: renews or releases the ownership. KEYS: owner.
-- ARGV: consumer, lease ms (0 releases it), channel, message for the channel.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
  redis.call('PUBLISH', ARGV[3], ARGV[4])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
