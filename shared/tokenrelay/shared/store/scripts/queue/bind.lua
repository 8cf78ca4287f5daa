-- Bind an idempotency key to a request ID, once. `expected` replaces the ID that it was bound to (whose request is gone).
-- KEYS: [1] idempotency key, [2] its mark that the request may still be about to be created
-- ARGV: request ID, ttl_ms, expected ('' = none), ttl_ms of the mark
-- Replies: {request ID that the key is bound to, milliseconds left}
local bound = redis.call('GET', KEYS[1])
if not bound or (ARGV[3] ~= '' and bound == ARGV[3]) then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[4])
  return { ARGV[1], tonumber(ARGV[2]) }
end
return { bound, redis.call('PTTL', KEYS[1]) }
