-- Takes due retries and entries that dead consumers left. KEYS: stream, due, notes.
-- ARGV: group, consumer, maximum number, lease ms, whether to read new entries too.
-- Returns the ms until the next entry is due (or -1) and {id, attempt, fields} of each.
local stream, due, notes = KEYS[1], KEYS[2], KEYS[3]
local group, me, most, lease = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('EXISTS', stream) == 0 then return {-1, {}} end
local now = now_ms()
local out = {}
local function claim(id, count)
  local entry = redis.call('XCLAIM', stream, group, me, 0, id, 'RETRYCOUNT', int(count))[1]
  if entry then out[#out + 1] = {id, count, entry[2]} end
end
if most > 0 then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', int(now), 'LIMIT', 0, most)) do
    redis.call('ZREM', due, id)
    local who, _, count = pending(stream, group, id)
    if who == '~' then claim(id, count + 1) end
  end
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    local is = {}
    for i = 1, #consumer, 2 do is[consumer[i]] = consumer[i + 1] end
    if #out < most and is['name'] ~= '~' and is['pending'] > 0 then
      local limit = tonumber(string.match(is['name'], '%.(%d+)$') or '') or lease
      local old = redis.call('XPENDING', stream, group, 'IDLE', int(limit), '-', '+', most - #out, is['name'])
      for _, p in ipairs(old) do
        redis.call('HSETNX', notes, p[1], int(now - p[3]))
        claim(p[1], p[4] + 1)
      end
    end
  end
  if ARGV[5] == '1' and #out < most then
    local read = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', most - #out, 'STREAMS', stream, '>')
    if read then
      for _, entry in ipairs(read[1][2]) do out[#out + 1] = {entry[1], 1, entry[2]} end
    end
  end
end
local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
if not first[2] then return {-1, out} end
return {math.max(0, tonumber(first[2]) - now), out}
