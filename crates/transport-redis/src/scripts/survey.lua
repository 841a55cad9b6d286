-- Looks which topics of a group may have entries to take. KEYS: the log and the replay stream of each topic.
-- ARGV: the group's name on each topic.
-- Returns for each topic: 1 when the log has pending entries or the replay stream has entries, else 0. A missing group
-- counts as 1, so that the caller finds out.
local out = {}
for i = 1, #ARGV do
  local summary = redis.pcall('XPENDING', KEYS[2 * i - 1], ARGV[i])
  local busy = summary.err or summary[1] > 0 or redis.call('XLEN', KEYS[2 * i]) > 0
  out[i] = busy and 1 or 0
end
return out
