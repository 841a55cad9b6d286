-- Stores a dead letter and acknowledges its entry. KEYS: stream, due, notes, dead letters, groups with dead letters.
-- ARGV: group (its name in Redis), consumer, is a copy, group, maximum number of letters, id, attempts, reason, error,
-- ms since it was taken.
-- Returns the number of letters; 0 when another consumer owns the entry, -1 when it is not pending.
local id = ARGV[6]
local who = pending(KEYS[1], ARGV[1], id)
if who ~= ARGV[2] then return who and 0 or -1 end
-- Letters of several streams are merged into one order, so their ids have microsecond resolution.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
if entry then
  local skip = {['bus-attempt'] = 1, ['bus-first-attempt'] = 1, ['bus-replayed'] = 1}
  local fields, origin = {}, id
  for i = 1, #entry[2], 2 do
    local name = entry[2][i]
    if name == 'bus-origin' then
      origin = entry[2][i + 1]
    elseif not skip[name] and string.sub(name, 1, 8) ~= 'bus-dlq-' then
      fields[#fields + 1] = name
      fields[#fields + 1] = entry[2][i + 1]
    end
  end
  local note = redis.call('HGET', KEYS[3], id)
  local first = note and string.match(note, '^%d+') or int(now - tonumber(ARGV[10]))
  local more = {
    'bus-origin', origin, 'bus-dlq-group', ARGV[4], 'bus-dlq-reason', ARGV[8], 'bus-dlq-error', ARGV[9],
    'bus-dlq-attempts', ARGV[7], 'bus-dlq-time', int(now), 'bus-first-attempt', first,
  }
  for i = 1, #more do fields[#fields + 1] = more[i] end
  local letter = int(now) .. '-' .. int((time[2] % 1000) * 1000)
  local stored = redis.pcall('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], letter, unpack(fields))
  if type(stored) == 'table' then
    -- Two letters within one microsecond, or a clock that went backwards.
    redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], '*', unpack(fields))
  end
  redis.call('SADD', KEYS[5], ARGV[4])
end
redis.call('XACK', KEYS[1], ARGV[1], id)
redis.call('ZREM', KEYS[2], id)
redis.call('HDEL', KEYS[3], id)
if ARGV[3] == '1' then redis.call('XDEL', KEYS[1], id) end
return math.max(1, redis.call('XLEN', KEYS[4]))
