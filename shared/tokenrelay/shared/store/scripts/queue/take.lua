-- Take up to n jobs over several queues in priority order, in one round trip and without a window in which a
-- crash loses one: execution, lease and status are written with the pop. Repeated with the same execution IDs
-- after a lost reply, it gives the same jobs again.
-- KEYS: [1] the worker's execution index, [2] the worker, [3] suspended flag, then queue, wip, claimed of each queue
-- ARGV: RQ's key prefix, lease in seconds, worker name, data limit in bytes, idle (1) or not (0), kind of the worker,
--       then n execution IDs
-- Replies: {queue number from 1, job ID, execution ID, job data, crashes before a claim} … ; nothing while RQ is suspended
local index, worker, P = KEYS[1], KEYS[2], ARGV[1]
local lease, name, data_limit = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local stamp = clock[1] .. '.' .. string.format('%06d', tonumber(clock[2]))
local now_ms = clock[1] .. string.format('%03d', math.floor(tonumber(clock[2]) / 1000))
local iso = iso_now()
local idle, refused = ARGV[5] == '1', 'refused:' .. ARGV[6]
local MAX_LEFT = 256
-- A job that has waited so long for an idle worker is reserved by one, which then takes nothing until it's idle.
local RESERVED_AFTER_MS, RESERVED_FOR_MS = 30000, 60000
local taken = {}

-- A key of another type than RQ's or ours is somebody's mistake. It may not cost a popped job, or the other queues'.
local function is(key, kind)
  local found = redis.call('TYPE', key)['ok']
  return found == kind or found == 'none'
end

local function give(number, job_id, execution_id)
  local key = P .. ':job:' .. job_id
  local data = ''
  if redis.call('HSTRLEN', key, 'data') <= data_limit then data = redis.call('HGET', key, 'data') or '' end
  taken[#taken + 1] = { number, job_id, execution_id, data, redis.call('HGET', key, 'crashed') or '0' }
end

local wanted, known = {}, {}
if not is(index, 'set') then redis.call('DEL', index) end
for _, member in ipairs(redis.call('SMEMBERS', index)) do
  local job_id, execution_id = string.match(member, '^([^:]+):(.+)$')
  if execution_id then known[execution_id] = job_id end
end
for argument = 7, #ARGV do
  local job_id = known[ARGV[argument]]
  local number = job_id and tonumber(redis.call('HGET', P .. ':execution:' .. job_id .. ':' .. ARGV[argument], 'queue'))
  if number then give(number, job_id, ARGV[argument]) else wanted[#wanted + 1] = ARGV[argument] end
end

-- Whether a note's time is still to come. One that is further away than any is written is none: somebody else's bytes, or
-- written before a failover to a host whose clock is behind.
local function holds(until_ms)
  local left_ms = (tonumber(until_ms or 0) or 0) - now_ms
  return left_ms > 0 and left_ms <= RESERVED_FOR_MS
end

-- What requeue.lua noted on a queued job: FREE, ALONE where it is taken by an idle worker and nothing with it, BUSY where
-- this worker isn't idle, REFUSED where workers of its kind gave it back a moment ago.
local function fit(alone, refused_until)
  if holds(refused_until) then return 'REFUSED' end
  if alone and not (idle and #taken == 0) then return 'BUSY' end
  return alone and 'ALONE' or 'FREE'
end

local function reservation(job)
  local m = redis.call('HMGET', P .. ':job:' .. job, 'alone', 'alone_for', 'alone_until')
  local holder = holds(m[3]) and m[2]
  return holder, now_ms - (tonumber(m[1]) or 0)
end

-- One worker at a time makes room, so that the others go on: nobody does where another one does for any of these.
local function reserve(waiting)
  local longest, longest_ms = nil, RESERVED_AFTER_MS
  for _, job_id in ipairs(waiting) do
    local holder, waited_ms = reservation(job_id)
    if holder and holder ~= name then return end
    if holder or waited_ms >= longest_ms then longest, longest_ms = job_id, holder and math.huge or waited_ms end
  end
  if longest then
    redis.call('HSET', P .. ':job:' .. longest, 'alone_for', name, 'alone_until',
      string.format('%.0f', now_ms + RESERVED_FOR_MS))
  end
end

if redis.call('EXISTS', KEYS[3]) == 1 then return taken end
local used = 0
for number = 1, (#KEYS - 3) / 3 do
  local queue, wip, claimed = KEYS[number * 3 + 1], KEYS[number * 3 + 2], KEYS[number * 3 + 3]
  local usable = redis.call('TYPE', queue)['ok'] == 'list' and is(wip, 'zset') and is(claimed, 'zset')
  -- Left in the queue: what waits for an idle worker where it stood, what others are to take behind their own.
  local stay, behind = {}, {}
  local popped, at = {}, 0
  while usable and used < #wanted and #stay + #behind < MAX_LEFT do
    -- Few commands a job: there may be thousands that aren't for this worker, and each of its looks meets them.
    if at == #popped then popped, at = redis.call('LPOP', queue, #wanted - used) or {}, 0 end
    if #popped == 0 then break end
    at = at + 1
    local job_id = popped[at]
    local job = P .. ':job:' .. job_id
    -- Anything but a queued job is a duplicate that a clean-up left, or was cancelled or deleted meanwhile. A key that is
    -- no hash gives an error, which has no fields.
    local fields = redis.pcall('HMGET', job, 'status', 'alone', refused)
    local status = fields[1]
    -- RQ's clean-up may have failed it on its way back to the queue: maintenance looks whether it really has ended.
    if status == 'failed' then redis.call('ZADD', claimed, 'NX', 0, job_id) end
    local how = status == 'queued' and fit(fields[2], fields[3])
    if how == 'BUSY' then
      stay[#stay + 1] = job_id
      if reservation(job_id) == name then wanted = {} end
    elseif how == 'REFUSED' then
      behind[#behind + 1] = job_id
    elseif how then
      redis.call('HDEL', job, 'alone', 'alone_for', 'alone_until', refused)
      used = used + 1
      local execution_id = wanted[used]
      local composite = job_id .. ':' .. execution_id
      local execution, executions = P .. ':execution:' .. composite, P .. ':executions:' .. job_id
      if not is(executions, 'zset') then redis.call('DEL', executions) end
      redis.call('HSET', execution, 'id', execution_id, 'job_id', job_id, 'created_at', stamp,
        'last_heartbeat', stamp, 'worker_name', name, 'queue', number)
      redis.call('EXPIRE', execution, lease)
      redis.call('ZADD', executions, now + lease + 60, execution_id)
      redis.call('EXPIRE', executions, lease + 60)
      redis.call('ZADD', wip, now + lease, composite)
      redis.call('SADD', index, composite)
      -- RQ persists a started job; ours keeps its ttl (deadline + retention), so that no key is left without one.
      redis.call('HSET', job, 'status', 'started', 'started_at', iso, 'last_heartbeat', iso, 'worker_name', name)
      redis.call('ZADD', claimed, now_ms, job_id)
      give(number, job_id, execution_id)
      if how == 'ALONE' then wanted = {} end
    end
  end
  reserve(stay)
  for left = #popped, at + 1, -1 do redis.call('LPUSH', queue, popped[left]) end
  for left = #stay, 1, -1 do redis.call('LPUSH', queue, stay[left]) end
  if #behind > 0 then redis.call('RPUSH', queue, unpack(behind)) end
  if used >= #wanted then break end
end
if used > 0 then
  redis.call('EXPIRE', index, lease + 60)
  if redis.call('TYPE', worker)['ok'] == 'hash' then redis.call('HSET', worker, 'state', 'busy') end
end
return taken
