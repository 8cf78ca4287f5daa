-- Make RQ say what the request's hash says: the request has ended. Never fenced by RQ's own lease, for RQ's clean-up
-- may have failed or requeued the job in the meantime; the hash is the truth.
-- ARGV: … [3] status (finished, failed, stopped, canceled), [4] ttl in seconds, then the fields of a result entry
--       (none: no result is written)
-- Replies: OK | ALREADY | DEPENDENTS (closed; it stays claimed until maintenance has enqueued them) | LOST
local status, ttl = ARGV[3], tonumber(ARGV[4])
local created_at = redis.call('HGET', KEYS[7], 'created_at')
local began = created_at and tonumber(created_at)
drop_all_executions()
if job_is_gone() then
  redis.call('ZREM', KEYS[5], job_id)
  return { 'LOST' }
end
redis.call('LREM', KEYS[6], 0, job_id)
local registry = ({ finished = KEYS[8], failed = KEYS[9], stopped = KEYS[9], canceled = KEYS[10] })[status]
-- RQ runs no dependents of what was cancelled or stopped.
local has_dependents = (status == 'finished' or status == 'failed') and redis.call('EXISTS', KEYS[13]) == 1
if redis.call('HGET', job, 'status') == status and redis.call('ZSCORE', registry, job_id) then
  if has_dependents and redis.call('ZSCORE', KEYS[5], job_id) then return { 'DEPENDENTS' } end
  redis.call('ZREM', KEYS[5], job_id)
  return { 'ALREADY' }
end

redis.call('ZREM', KEYS[8], job_id)
redis.call('ZREM', KEYS[9], job_id)
redis.call('ZREM', KEYS[10], job_id)
local iso = iso_now()
redis.call('HSET', job, 'status', status, 'ended_at', iso, 'last_heartbeat', iso)
redis.call('EXPIRE', job, ttl)
redis.call('ZADD', registry, now + ttl, job_id)
-- Not of the canceled registry: RQ scores its own cancels with when they were made, and maintenance has yet to end them.
if status ~= 'canceled' then redis.call('ZREMRANGEBYSCORE', registry, '-inf', now - ttl) end
local ended = clock[1] .. '.' .. string.format('%06d', tonumber(clock[2]))
if #ARGV > 4 then
  local fields = { unpack(ARGV, 5) }
  if ARGV[2] ~= '' and began then
    for _, item in ipairs({ 'execution_id', ARGV[2], 'execution_started_at', created_at, 'execution_ended_at', ended }) do
      fields[#fields + 1] = item
    end
  end
  redis.call('XADD', KEYS[11], 'MAXLEN', 10, '*', unpack(fields))
  redis.call('EXPIRE', KEYS[11], ttl)
end
if status ~= 'canceled' and redis.call('EXISTS', KEYS[12]) == 1 then
  local counter = status == 'finished' and 'successful_job_count' or 'failed_job_count'
  redis.call('HINCRBY', KEYS[12], counter, 1)
  if began then redis.call('HINCRBYFLOAT', KEYS[12], 'total_working_time', math.max(tonumber(ended) - began, 0)) end
end
if redis.call('EXISTS', KEYS[13]) == 1 then redis.call('EXPIRE', KEYS[13], ttl) end
if has_dependents then
  redis.call('ZADD', KEYS[5], 'NX', 0, job_id)
  return { 'DEPENDENTS' }
end
redis.call('ZREM', KEYS[5], job_id)
return { 'OK' }
