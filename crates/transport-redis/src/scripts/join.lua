-- Joins a group if its definition is still the one that the member read. KEYS: groups, members, tombstone.
-- ARGV: group, definition read, definition wanted, keyed changes, consumer ('' for none), ttl ms.
-- Returns 1, 0 when the definition has changed, -1 when live members forbid the change of keyed.
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
