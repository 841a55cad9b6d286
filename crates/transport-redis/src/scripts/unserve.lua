-- Removes a server from its subject. If no other live server is left, takes the requests that are still queued and
-- returns them, so that their callers can be notified. KEYS: queue, servers. ARGV: name.
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('ZCOUNT', KEYS[2], int(now_ms()), '+inf') > 0 then return {} end
local queued = redis.call('LRANGE', KEYS[1], 0, -1)
redis.call('DEL', KEYS[1])
return queued
