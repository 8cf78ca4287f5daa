-- Give a taken job back to its queue, at the front (a hand-back continues first) or at the back.
-- ARGV: … [4] front or back. Replies: OK | NOT_STARTED status | LOST
drop_all_executions()
local status = redis.call('HGET', job, 'status')
if not status then return { 'LOST' } end
-- `failed` is what RQ's own clean-up makes of an execution whose lease ran out; the hash says it goes on.
if status ~= 'started' and status ~= 'failed' then
  -- Cancelled or deleted in RQ: it stays claimed until the request has ended too, so that maintenance sees it.
  if status == 'queued' then redis.call('ZREM', KEYS[5], job_id) end
  return { 'NOT_STARTED', status }
end
redis.call('ZREM', KEYS[5], job_id)
redis.call('ZREM', KEYS[9], job_id)
redis.call('HSET', job, 'status', 'queued', 'enqueued_at', ARGV[3], 'started_at', '', 'ended_at', '',
  'last_heartbeat', ARGV[3], 'worker_name', '')
-- Failing it, RQ's clean-up gave it failure_ttl, which may end before the deadline.
local ttl = tonumber(redis.call('HGET', job, 'ttl'))
if ttl then redis.call('EXPIRE', job, ttl) end
redis.call(ARGV[4] == 'front' and 'LPUSH' or 'RPUSH', KEYS[6], job_id)
redis.call('PUBLISH', KEYS[14], KEYS[6])
return { 'OK' }
