-- Keyed: becomes or stays the active member. KEYS: owner, log, its notes, replay, its notes.
-- ARGV: group, consumer, lease ms.
-- Returns {1 when newly active | 0 when already active | -1 when another member is active, ms until the lease ends}.
local me = ARGV[2]
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= me then return {-1, redis.call('PTTL', KEYS[1])} end
redis.call('SET', KEYS[1], me, 'PX', ARGV[3])
if owner then return {0, tonumber(ARGV[3])} end
-- Entries that the previous active member had in flight count as attempted.
local now = now_ms()
for k = 2, 4, 2 do
  local consumers = redis.call('EXISTS', KEYS[k]) == 1 and redis.pcall('XINFO', 'CONSUMERS', KEYS[k], ARGV[1]) or {}
  if consumers.err and k == 2 then return redis.error_reply(consumers.err) end
  for _, consumer in ipairs(consumers) do
    local name = consumer[2]
    while name ~= '~' do
      local old = redis.call('XPENDING', KEYS[k], ARGV[1], '-', '+', 1000, name)
      for _, p in ipairs(old) do
        redis.call('HSETNX', KEYS[k + 1], p[1], int(now - p[3]))
        redis.call('XCLAIM', KEYS[k], ARGV[1], '~', 0, p[1], 'RETRYCOUNT', p[4], 'JUSTID')
      end
      if #old < 1000 then break end
    end
  end
end
return {1, tonumber(ARGV[3])}
