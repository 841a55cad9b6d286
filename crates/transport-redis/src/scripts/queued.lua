-- Returns 1 while a request is queued and its subject has a live server; removes a queued request without a live server
-- and returns 0.
-- KEYS: queue, servers. ARGV: request.
if redis.call('LPOS', KEYS[1], ARGV[1]) then
  if redis.call('ZCOUNT', KEYS[2], int(now_ms()), '+inf') > 0 then return 1 end
  redis.call('LREM', KEYS[1], 1, ARGV[1])
end
return 0
