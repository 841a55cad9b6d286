-- Records that a member or server is alive. KEYS: sorted set. ARGV: name, ttl ms.
local now = now_ms()
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. int(now))
redis.call('ZADD', KEYS[1], int(now + tonumber(ARGV[2])), ARGV[1])
redis.call('PEXPIRE', KEYS[1], int(10 * tonumber(ARGV[2])))
return 1
