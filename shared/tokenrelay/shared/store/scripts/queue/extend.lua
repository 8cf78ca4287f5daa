-- What RQ's own Execution.heartbeat writes, for an execution that is still registered.
-- ARGV: … [3] lease in seconds, and for requeue.lua, if anything: [4] whether the job only waits (1) or not (0). Replies: OK
local lease = tonumber(ARGV[3])
redis.call('ZADD', KEYS[2], 'XX', now + lease, composite)
redis.call('ZADD', KEYS[3], 'XX', now + lease + 60, ARGV[2])
redis.call('EXPIRE', KEYS[3], lease + 60)
if ARGV[4] and redis.call('EXISTS', KEYS[7]) == 1 then redis.call('HSET', KEYS[7], 'waits', ARGV[4]) end
redis.call('EXPIRE', KEYS[7], lease)
return { 'OK' }
