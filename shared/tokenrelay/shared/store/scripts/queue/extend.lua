-- What RQ's own Execution.heartbeat writes, for an execution that is still registered.
-- ARGV: … [3] lease in seconds. Replies: OK
local lease = tonumber(ARGV[3])
redis.call('ZADD', KEYS[2], 'XX', now + lease, composite)
redis.call('ZADD', KEYS[3], 'XX', now + lease + 60, ARGV[2])
redis.call('EXPIRE', KEYS[3], lease + 60)
redis.call('EXPIRE', KEYS[7], lease)
return { 'OK' }
