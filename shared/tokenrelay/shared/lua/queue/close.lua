-- Make RQ say what the request's hash says: the request has ended. Never fenced by RQ's own lease, for RQ's clean-up
-- may have failed or requeued the job in the meantime; the hash is the truth.
-- ARGV: … [4] status (finished, failed, stopped, canceled), [5] ttl in seconds, [6] working seconds,
--       then the fields of a result entry (none: no result is written)
-- Replies: OK | ALREADY | DEPENDENTS (closed; RQ has dependents to enqueue) | LOST
local status, ttl = ARGV[4], tonumber(ARGV[5])
drop_all_executions()
redis.call('ZREM', KEYS[5], job_id)
if redis.call('EXISTS', job) == 0 then return { 'LOST' } end
redis.call('LREM', KEYS[6], 0, job_id)
local registry = ({ finished = KEYS[8], failed = KEYS[9], stopped = KEYS[9], canceled = KEYS[10] })[status]
if redis.call('HGET', job, 'status') == status and redis.call('ZSCORE', registry, job_id) then return { 'ALREADY' } end

redis.call('ZREM', KEYS[8], job_id)
redis.call('ZREM', KEYS[9], job_id)
redis.call('ZREM', KEYS[10], job_id)
redis.call('HSET', job, 'status', status, 'ended_at', ARGV[3], 'last_heartbeat', ARGV[3])
redis.call('EXPIRE', job, ttl)
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', registry, now + ttl, job_id)
-- RQ never cleans the canceled registry, and gives its own cancels no ttl: their score is when they were cancelled.
redis.call('ZREMRANGEBYSCORE', registry, '-inf', now - ttl)
if #ARGV > 6 then
  redis.call('XADD', KEYS[11], 'MAXLEN', 10, '*', unpack(ARGV, 7))
  redis.call('EXPIRE', KEYS[11], ttl)
end
if status ~= 'canceled' and redis.call('EXISTS', KEYS[12]) == 1 then
  local counter = status == 'finished' and 'successful_job_count' or 'failed_job_count'
  redis.call('HINCRBY', KEYS[12], counter, 1)
  redis.call('HINCRBYFLOAT', KEYS[12], 'total_working_time', ARGV[6])
end
if redis.call('EXISTS', KEYS[13]) == 1 then
  redis.call('EXPIRE', KEYS[13], ttl)
  return { 'DEPENDENTS' }
end
return { 'OK' }
