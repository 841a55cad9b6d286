-- Queues a request, unless its subject has no live server. KEYS: queue, servers. ARGV: request, ttl ms.
if redis.call('ZCOUNT', KEYS[2], int(now_ms()), '+inf') == 0 then return 0 end
redis.call('RPUSH', KEYS[1], ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
