-- Make this execution the request's only writer.
-- ARGV: execution_id, lease_ms, worker, model, fingerprint, max_crashes, suspicion_ms, seed, prompt_tokens, prompt_ids (JSON),
--       and for a short prompt the texts of its tokens (JSON)
-- Replies: OK fence attempt next crashes deadline_us prompt_ids {token, text, token, text, …}
--        | BUSY | DONE state | PAST | POISON | NOT_MINE why | LOST
local m = redis.call('HMGET', request, 'state', 'fence', 'wire', 'deadline_us', 'fingerprint', 'lease_us',
  'suspect_us', 'crashes', 'attempt', 'next', 'prompt_ids')
local state, fence = m[1], m[2]
if not state or redis.call('EXISTS', stream) == 0 then return { 'LOST' } end
if m[3] ~= '1' then return { 'NOT_MINE', 'wire ' .. tostring(m[3]) } end
if terminal(state) then return { 'DONE', state } end

-- What earlier attempts emitted. A stream that was trimmed can't be continued: its prefix would be missing.
local emitted = {}
if tonumber(m[10]) > 1 then
  for _, entry in ipairs(redis.call('XRANGE', stream, '1-0', '+')) do
    local fields = entry[2]
    if fields[1] == 'text' and fields[3] == 'token' then
      emitted[#emitted + 1] = fields[4]
      emitted[#emitted + 1] = fields[2]
    end
  end
end
if #emitted ~= 2 * (tonumber(m[10]) - 1) then return { 'LOST' } end

local now = now_us()
local attempt, next_index, crashes = tonumber(m[9]), tonumber(m[10]), tonumber(m[8]) or 0
local repeated = fence == attempt .. ':' .. ARGV[1]
if not repeated then
  if now > tonumber(m[4]) then return { 'PAST' } end
  if m[5] and m[5] ~= ARGV[5] then return { 'NOT_MINE', 'fingerprint' } end
  if fence ~= '' then
    -- Redis may have stalled, not the worker: a lease that ran out is taken only after a second look (suspect.lua).
    if now <= tonumber(m[6]) or not m[7] or now - tonumber(m[7]) < tonumber(ARGV[7]) * 1000 then return { 'BUSY' } end
    crashes = crashes + 1
  end
  if crashes >= tonumber(ARGV[6]) then
    redis.call('HSET', request, 'crashes', crashes)
    if not terminate('failed', 'error', now, { code = 'poison_request',
      message = 'the worker that generated this request died ' .. crashes .. ' times in a row' }) then
      return { 'LOST' }
    end
    return { 'POISON' }
  end
  attempt = attempt + 1
  fence = attempt .. ':' .. ARGV[1]
  if m[11] == false then
    redis.call('HSET', request, 'prompt_ids', ARGV[10], 'prompt_tokens', ARGV[9], 'fingerprint', ARGV[5])
    m[11] = ARGV[10]
    if ARGV[11] then
      redis.call('HSET', request, 'prompt_texts', ARGV[11])
    end
  end
  local written
  if attempt == 1 then
    written = write_event('started', now, { 'worker', ARGV[3], 'attempt', attempt, 'model', ARGV[4],
      'prompt_tokens', ARGV[9], 'seed', ARGV[8] })
  else
    local prompt_tokens = tonumber(redis.call('HGET', request, 'prompt_tokens'))
    redis.call('HINCRBY', request, 'recomputed_tokens', prompt_tokens + next_index - 1)
    written = write_event('migrated', now, { 'worker', ARGV[3], 'attempt', attempt, 'resumed_at', next_index })
  end
  if not written then return { 'LOST' } end
  redis.call('HSET', request, 'state', 'in_progress', 'fence', fence, 'attempt', attempt, 'crashes', crashes,
    'lease_us', us(now + tonumber(ARGV[2]) * 1000))
  redis.call('HDEL', request, 'suspect_us')
end
return { 'OK', fence, attempt, next_index, crashes, m[4], m[11], emitted }
