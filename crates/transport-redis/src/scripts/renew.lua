-- Renews leases. KEYS: stream. ARGV: group, consumer, ids… Returns 1 for each entry that the consumer still owns, else
-- 0.
local mine, out = {}, {}
for i = 3, #ARGV do
  local is = pending(KEYS[1], ARGV[1], ARGV[i]) == ARGV[2]
  if is then mine[#mine + 1] = ARGV[i] end
  out[#out + 1] = is and 1 or 0
end
if #mine > 0 then
  mine[#mine + 1] = 'JUSTID'
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(mine))
end
return out
