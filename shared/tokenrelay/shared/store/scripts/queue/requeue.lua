-- Give a taken job back to its queue, at the front (a hand-back continues first) or at the back.
-- ARGV: … [3] front or back, and for take.lua, if anything: [4] a note, `alone` or `refused:KIND`, [5] for how many ms,
--       [6] for how many at most, where it's twice as long each time; or [4] `crashed`, [5] from how many crashes on it runs alone.
-- Replies: OK | NOT_STARTED status | LOST
local waited = redis.pcall('HGET', KEYS[7], 'waits') == '1'
drop_all_executions()
if job_is_gone() then return { 'LOST' } end
local status = redis.call('HGET', job, 'status')
-- `failed` is what RQ's own clean-up makes of an execution whose lease ran out; the hash says that it runs.
if status ~= 'started' and status ~= 'failed' then
  -- Cancelled or deleted in RQ: it stays claimed until the request has ended too, so that maintenance sees it.
  if status == 'queued' then redis.call('ZREM', KEYS[5], job_id) end
  return { 'NOT_STARTED', status or '' }
end
redis.call('ZREM', KEYS[5], job_id)
redis.call('ZREM', KEYS[9], job_id)
local iso = iso_now()
redis.call('HSET', job, 'status', 'queued', 'enqueued_at', iso, 'started_at', '', 'ended_at', '',
  'last_heartbeat', iso, 'worker_name', '')
-- Failing it, RQ's clean-up gave it failure_ttl, which may end before the deadline.
local ttl = tonumber(redis.call('HGET', job, 'ttl'))
if ttl then redis.call('EXPIRE', job, ttl) end
local note, noted_ms = ARGV[4], now * 1000
if note == 'crashed' then
  -- Its worker died before it could claim the request, whose hash counts the crashes of those that had. Of a job that
  -- only waited it was no fault.
  local crashed = (tonumber(redis.call('HGET', job, 'crashed') or 0) or 0) + (waited and 0 or 1)
  redis.call('HSET', job, 'crashed', crashed)
  note = crashed >= tonumber(ARGV[5]) and 'alone'
elseif note then
  local for_ms = tonumber(ARGV[5])
  if ARGV[6] then
    local before = tonumber(redis.call('HGET', job, 'times:' .. note) or 0) or 0
    redis.call('HSET', job, 'times:' .. note, string.format('%.0f', before + 1))
    for_ms = math.min(for_ms * 2 ^ before, tonumber(ARGV[6]))
  end
  noted_ms = noted_ms + for_ms
end
if note then redis.call('HSET', job, note, string.format('%.0f', noted_ms)) end
redis.call(ARGV[3] == 'front' and 'LPUSH' or 'RPUSH', KEYS[6], job_id)
redis.call('PUBLISH', KEYS[14], KEYS[6])
return { 'OK' }
