local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function int(n) return string.format('%.0f', n) end
-- The owner of the entry `id`: its consumer, idle time and delivery count; nothing when it is not pending.
local function pending(stream, group, id)
  local p = redis.call('XPENDING', stream, group, id, id, 1)[1]
  if p then return p[2], p[3], p[4] end
end
