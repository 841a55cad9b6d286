-- Whether a request still waits for a server that lives; else it is taken back. KEYS: queue, servers. ARGV: request.
if redis.call('LPOS', KEYS[1], ARGV[1]) then
  if redis.call('ZCOUNT', KEYS[2], int(now_ms()), '+inf') > 0 then return 1 end
  redis.call('LREM', KEYS[1], 1, ARGV[1])
end
return 0
