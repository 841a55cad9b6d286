-- Reads the subjects of entries after an id. KEYS: log. ARGV: id, maximum number. Returns id and subject of each.
local out = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])) do
  local subject = ''
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'bus-subject' then subject = entry[2][i + 1] break end
  end
  out[#out + 1] = entry[1]
  out[#out + 1] = subject
end
return out
