-- Reports the progress of a group on a topic. KEYS: log, settings, due, dead letters, replay, replay's due. ARGV:
-- group.
-- Returns name, filters, parked, in flight, retrying, oldest pending, last delivered, lag (-1: unknown), dead, replays
-- waiting, last generated, first unread.
local now = now_ms()
local epoch = tonumber(redis.call('HGET', KEYS[2], 'epoch') or '0')
local name = ARGV[1]
if epoch > 0 then name = name .. '#' .. int(epoch) end
local parked, hand, oldest = 0, 0, ''
local function count(stream)
  if redis.call('EXISTS', stream) == 0 then return end
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local is = {}
    for i = 1, #group, 2 do is[group[i]] = group[i + 1] end
    if is['name'] == name then
      local summary = redis.call('XPENDING', stream, name)
      if summary[1] > 0 then
        for _, consumer in ipairs(summary[4]) do
          if consumer[1] == '~' then parked = parked + consumer[2] else hand = hand + consumer[2] end
        end
      end
      return is, summary[2]
    end
  end
end
local is, first = count(KEYS[1])
if not is then return false end
local replays = 0
local copies = count(KEYS[5])
if copies then replays = tonumber(copies['lag'] or 0) elseif redis.call('EXISTS', KEYS[5]) == 1 then replays = redis.call('XLEN', KEYS[5]) end
local last = '0-0'
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do if info[i] == 'last-generated-id' then last = info[i + 1] end end
local unread = redis.call('XRANGE', KEYS[1], '(' .. is['last-delivered-id'], '+', 'COUNT', 1)[1]
return {
  name, redis.call('HGET', KEYS[2], 'filters') or '', parked, hand,
  redis.call('ZCOUNT', KEYS[3], '(' .. int(now), '+inf') + redis.call('ZCOUNT', KEYS[6], '(' .. int(now), '+inf'),
  first or '', is['last-delivered-id'], is['lag'] or -1, redis.call('XLEN', KEYS[4]), replays, last,
  unread and unread[1] or '',
}
