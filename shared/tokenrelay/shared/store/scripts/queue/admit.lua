-- Admit a call's requests before they are created: idempotency key, owner's limits, queue's depth. All or nothing.
-- KEYS: [1] queue list; if `keyed`, the idempotency key and its mark; if `owned`, the owner's sorted set
-- ARGV: request ID, ttl_ms, depth limit, keyed, ttl_ms of the mark, the ID that the key's binding may replace ('' = none),
--       owned, max_concurrent, max_queued, prefix of RQ's jobs, prefix of `claimed`, how many requests have the ID as
--       their base, then IDs of the owner that have ended
-- Replies: OK | BOUND request_id is_new | FULL depth | CONCURRENT open counted … | QUEUED queued counted …
--   counted: IDs that were counted by what RQ says of their jobs; their requests may have ended a moment ago
local request_id, ttl_ms, depth_limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local keyed, mark_ttl_ms, replaceable = ARGV[4] == '1', ARGV[5], ARGV[6]
local owned, max_concurrent, max_queued = ARGV[7] == '1', tonumber(ARGV[8]), tonumber(ARGV[9])
local job_prefix, claimed_prefix, choices, first_ended = ARGV[10], ARGV[11], tonumber(ARGV[12]), 13
local queue, key, mark, owner = KEYS[1], KEYS[2], KEYS[3], KEYS[#KEYS]
local most_returned, page, arriving_us = 256, 256, 10000000
local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]

local bound = keyed and redis.call('GET', key)
if bound == replaceable then bound = nil end
local member, is_new = bound or request_id, bound and redis.call('GET', mark) == bound
local is_counted = owned and redis.call('ZSCORE', owner, member)
if bound == request_id or (not bound and is_counted) then return { 'OK' } end -- a repeat
-- A request that was bound a moment ago and never enqueued (its queue was full, its gateway died) is admitted again.
if bound and not (is_new and owned and not is_counted and redis.call('EXISTS', job_prefix .. bound) == 0) then
  return { 'BOUND', bound, is_new and 1 or 0 }
end

-- What RQ calls the job, queued or started; false where it has ended. A failed job that is still claimed runs: it
-- was RQ's clean-up that failed it.
local function state_of(member, score)
  local status, origin = unpack(redis.call('HMGET', job_prefix .. member, 'status', 'origin'))
  if not status then return score > now_us - arriving_us and 'arriving' end -- its gateway is about to enqueue it
  if status == 'queued' or status == 'started' then return status end
  local running = status == 'failed' and origin and redis.call('ZSCORE', claimed_prefix .. origin, member)
  return running and 'started'
end

-- The owner's set is an upper bound, and is corrected only where it reaches a limit: members that have ended go, and
-- those that were started get a negative score, by which they are never counted as queued again.
-- Returns how many of the members are no longer in the range of scores that they were read from.
local counted = {}
local function correct(members)
  local left = 0
  for at = 1, #members, 2 do
    local member, score = members[at], tonumber(members[at + 1])
    local state = state_of(member, score)
    if not state then
      redis.call('ZREM', owner, member)
      left = left + 1
    elseif state == 'started' and score > 0 then
      redis.call('ZADD', owner, 'XX', -now_us, member)
      left = left + 1
    end
    if state and state ~= 'arriving' and #counted < most_returned then counted[#counted + 1] = member end
  end
  return left
end

-- Correct members until there is room for all choices, the oldest of a range first: an owner that keeps thousands
-- open, and submits the next one as one ends, mustn't have them all looked at each time.
local function make_room(first, last, ...)
  local kept, members = 0, nil
  repeat
    members = redis.call('ZRANGE', owner, first, last, 'LIMIT', kept, page, 'WITHSCORES', 'BYSCORE', ...)
    kept = kept + #members / 2 - correct(members)
  until #members == 0 or redis.call('ZCARD', owner) + choices <= max_concurrent
end

local function queued_members()
  return redis.call('ZRANGE', owner, 0, '+inf', 'BYSCORE', 'LIMIT', 0, max_queued, 'WITHSCORES')
end

if owned then
  for at = first_ended, #ARGV do redis.call('ZREM', owner, ARGV[at]) end
  if redis.call('ZCARD', owner) + choices > max_concurrent then
    make_room('(0', '-inf', 'REV')
    make_room('0', '+inf')
    local open = redis.call('ZCARD', owner)
    if open + choices > max_concurrent then return { 'CONCURRENT', open, unpack(counted) } end
  end
  local queued = queued_members()
  while #queued / 2 + choices > max_queued do
    counted = {}
    if correct(queued) == 0 then return { 'QUEUED', #queued / 2, unpack(counted) } end
    queued = queued_members()
  end
end
local depth = redis.call('LLEN', queue)
if not bound and depth + choices > depth_limit then return { 'FULL', depth } end
if keyed and not bound then
  redis.call('SET', key, request_id, 'PX', ttl_ms)
  redis.call('SET', mark, request_id, 'PX', mark_ttl_ms)
end
if owned then
  local left_ms = redis.call('PTTL', owner)
  for choice = 0, choices - 1 do
    redis.call('ZADD', owner, now_us, choice == 0 and member or member .. '-' .. choice)
  end
  redis.call('PEXPIRE', owner, math.max(left_ms, tonumber(ttl_ms)))
end
if bound then return { 'BOUND', bound, 1 } end
return { 'OK' }
