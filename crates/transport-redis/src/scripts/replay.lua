-- Moves a dead letter to the replay stream of its group. KEYS: dead letters, replay stream, settings.
-- ARGV: group, letter, channel, message for the channel.
local entry = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if not entry then return 0 end
local epoch = tonumber(redis.call('HGET', KEYS[3], 'epoch') or '0')
local name = ARGV[1]
if epoch > 0 then name = name .. '#' .. int(epoch) end
local fields = {}
for i = 1, #entry[2], 2 do
  local field = entry[2][i]
  if field ~= 'bus-first-attempt' and string.sub(field, 1, 8) ~= 'bus-dlq-' then
    fields[#fields + 1] = field
    fields[#fields + 1] = entry[2][i + 1]
  end
end
fields[#fields + 1] = 'bus-replayed'
fields[#fields + 1] = '1'
redis.call('XADD', KEYS[2], '*', unpack(fields))
local made = redis.pcall('XGROUP', 'CREATE', KEYS[2], name, '0')
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1
