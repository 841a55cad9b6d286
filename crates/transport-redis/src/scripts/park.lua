-- Gives entries back to the group, each with a delay. KEYS: stream, due, notes.
-- ARGV: group, consumer, channel, message for the channel, then of each entry: id, attempts made, delay ms, error (''
-- when it was not attempted), ms since it was taken.
-- Returns 1 for each entry that the consumer owned, else 0.
local out = {}
local now = now_ms()
local soonest
for i = 5, #ARGV, 5 do
  local id, wait = ARGV[i], tonumber(ARGV[i + 2])
  local done = 0
  if pending(KEYS[1], ARGV[1], id) == ARGV[2] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], '~', 0, id, 'RETRYCOUNT', ARGV[i + 1], 'JUSTID')
    redis.call('ZADD', KEYS[2], int(now + wait), id)
    if ARGV[i + 3] ~= '' then
      local first = string.match(redis.call('HGET', KEYS[3], id) or '', '^%d+') or int(now - tonumber(ARGV[i + 4]))
      redis.call('HSET', KEYS[3], id, first .. ' ' .. ARGV[i + 3])
    end
    if not soonest or wait < soonest then soonest = wait end
    done = 1
  end
  out[#out + 1] = done
end
if soonest then redis.call('PUBLISH', ARGV[3], ARGV[4] .. ' ' .. int(soonest)) end
return out
