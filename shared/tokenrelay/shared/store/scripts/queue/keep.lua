-- Make RQ say again that a job runs: its clean-up failed it in its worker's hands.
-- ARGV: … [3] lease in seconds. Replies: OK | ALREADY status
local status = not job_is_gone() and redis.call('HGET', job, 'status')
-- What has ended is no longer claimed: it must not be started again by a worker that hadn't heard.
if status ~= 'failed' or not redis.call('ZSCORE', KEYS[5], job_id) then return { 'ALREADY', status or '' } end
redis.call('ZREM', KEYS[9], job_id)
redis.call('HSET', job, 'status', 'started', 'ended_at', '')
-- Failing it, RQ's clean-up gave it failure_ttl, which may end before the deadline.
local ttl = tonumber(redis.call('HGET', job, 'ttl'))
if ttl then redis.call('EXPIRE', job, ttl) end
if redis.call('EXISTS', KEYS[7]) == 1 then
  local lease = tonumber(ARGV[3])
  redis.call('ZADD', KEYS[2], now + lease, composite)
  redis.call('ZADD', KEYS[3], now + lease + 60, ARGV[2])
  redis.call('EXPIRE', KEYS[3], lease + 60)
end
return { 'OK' }
