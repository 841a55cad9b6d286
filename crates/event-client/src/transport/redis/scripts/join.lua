-- Joins a group if its definition is still what the member saw. KEYS: groups, members, tombstone.
-- ARGV: group, definition seen, definition wanted, keyed changes, consumer ('' for none), ttl ms.
local is = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if is ~= ARGV[2] then return 0 end
local now = now_ms()
if ARGV[4] == '1' and redis.call('ZCOUNT', KEYS[2], int(now), '+inf') > 0 then return -1 end
if is ~= ARGV[3] then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
  redis.call('DEL', KEYS[3])
end
if ARGV[5] ~= '' then redis.call('ZADD', KEYS[2], int(now + tonumber(ARGV[6])), ARGV[5]) end
return 1
