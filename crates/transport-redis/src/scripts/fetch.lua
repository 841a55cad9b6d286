-- Keyed: reads for the active member; entries belong to `~` until they are delivered. KEYS: stream, due, owner.
-- ARGV: group, consumer, maximum number, after id ('' reads new entries, an id reads earlier entries that wait under
-- `~`).
-- Returns 0 when the consumer is no longer active, else {id, attempts made, ms until due or -1, fields} of each entry.
local stream, group = KEYS[1], ARGV[1]
if redis.call('GET', KEYS[3]) ~= ARGV[2] then return 0 end
local out = {}
if redis.call('EXISTS', stream) == 0 then return out end
if ARGV[4] ~= '' then
  local now = now_ms()
  local waiting = redis.call('XPENDING', stream, group, '(' .. ARGV[4], '+', ARGV[3], '~')
  for _, p in ipairs(waiting) do
    local entry = redis.call('XCLAIM', stream, group, '~', 0, p[1], 'RETRYCOUNT', p[4])[1]
    local at = redis.call('ZSCORE', KEYS[2], p[1])
    out[#out + 1] = {p[1], p[4], at and math.max(0, tonumber(at) - now) or -1, entry and entry[2] or false}
  end
  return out
end
local read = redis.call('XREADGROUP', 'GROUP', group, '~', 'COUNT', ARGV[3], 'STREAMS', stream, '>')
if read then
  local ids = {}
  for i, entry in ipairs(read[1][2]) do
    out[i] = {entry[1], 0, -1, entry[2]}
    ids[i] = entry[1]
  end
  ids[#ids + 1] = 'RETRYCOUNT'
  ids[#ids + 1] = '0'
  ids[#ids + 1] = 'JUSTID'
  redis.call('XCLAIM', stream, group, '~', 0, unpack(ids))
end
return out
