-- Acknowledges entries that the group's patterns do not match, unless the patterns have changed meanwhile.
-- KEYS: log, settings. ARGV: version, group, ids…
if (redis.call('HGET', KEYS[2], 'version') or '0') ~= ARGV[1] then return 0 end
redis.call('XACK', KEYS[1], ARGV[2], unpack(ARGV, 3))
return 1
