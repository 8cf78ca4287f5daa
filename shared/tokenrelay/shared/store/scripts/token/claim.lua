-- Make this execution the request's only writer.
-- ARGV: execution_id, lease_ms, worker, model, fingerprint, max_crashes, suspicion_ms, seed, prompt_tokens, prompt_ids (JSON),
--       the texts of a short prompt's tokens (JSON, or empty), the highest wire version that the worker knows (absent: 1),
--       the `effective` (JSON) that it would write into a request of version 2, and the special tokens that stay in the
--       text (JSON, or empty)
-- Replies: OK fence attempt next crashes deadline_us prompt_ids {token, text, token, text, …} effective {logprobs, …}
--        | BUSY | DONE state | PAST | POISON | NOT_MINE why | UNREADABLE field | LOST
local m = redis.call('HMGET', request, 'state', 'fence', 'wire', 'deadline_us', 'fingerprint', 'lease_us',
  'suspect_us', 'crashes', 'attempt', 'next', 'prompt_ids', 'effective')
local state, fence = m[1], m[2]
if not state or redis.call('EXISTS', stream) == 0 then return { 'LOST' } end
local wire = whole(m[3])
if not wire or wire > tonumber(ARGV[12] or '1') then return { 'NOT_MINE', 'wire ' .. tostring(m[3]) } end
if terminal(state) then return { 'DONE', state } end
-- A newer version's word, perhaps: its workers may know it.
if state ~= 'queued' and state ~= 'in_progress' then return { 'NOT_MINE', 'state ' .. state } end
local deadline, attempt, next_index = whole(m[4]), whole(m[9]), whole(m[10])
if not deadline then return { 'UNREADABLE', 'deadline_us' } end
if not attempt then return { 'UNREADABLE', 'attempt' } end
if not next_index then return { 'UNREADABLE', 'next' } end

local now = now_us()
local crashes = whole(m[8]) or 0
local repeated = fence == attempt .. ':' .. ARGV[1]
if not repeated then
  if now > deadline then return { 'PAST' } end
  if m[5] and m[5] ~= ARGV[5] then return { 'NOT_MINE', 'fingerprint' } end
  if m[12] then
    local decided = decoded(m[12])
    if not decided then return { 'UNREADABLE', 'effective' } end
    local member = disobeyed(decided, decoded(ARGV[13]) or {})
    if member then return { 'NOT_MINE', 'effective ' .. member } end
  end
  if fence ~= '' then
    -- Redis may have stalled, not the worker: a lease that ran out is taken only after a second look (suspect.lua).
    -- A time that can't be read is one that has passed.
    local lease, suspect = whole(m[6]) or 0, whole(m[7])
    if now <= lease or not suspect or now - suspect < tonumber(ARGV[7]) * 1000 then return { 'BUSY' } end
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
end

-- What earlier attempts emitted: read only for a claim that is granted. A stream that was trimmed can't be continued:
-- its prefix would be missing.
local emitted, logprobs = {}, {}
if next_index > 1 then
  for _, entry in ipairs(redis.call('XRANGE', stream, '1-0', '+')) do
    local fields = entry[2]
    if fields[1] == 'text' and fields[3] == 'token' then
      emitted[#emitted + 1] = fields[4]
      emitted[#emitted + 1] = fields[2]
      if fields[7] == 'logprobs' then logprobs[#logprobs + 1] = fields[8] end
    end
  end
end
if #emitted ~= 2 * (next_index - 1) then return { 'LOST' } end

if not repeated then
  attempt = attempt + 1
  fence = attempt .. ':' .. ARGV[1]
  if m[11] == false then
    redis.call('HSET', request, 'prompt_ids', ARGV[10], 'prompt_tokens', ARGV[9], 'fingerprint', ARGV[5])
    m[11] = ARGV[10]
    if ARGV[11] and ARGV[11] ~= '' then
      redis.call('HSET', request, 'prompt_texts', ARGV[11])
    end
  end
  -- A worker that will refuse the request has decided nothing.
  if wire > 1 and not m[12] and ARGV[13] ~= '' then
    redis.call('HSET', request, 'effective', ARGV[13])
    m[12] = ARGV[13]
  end
  local written
  if attempt == 1 then
    local fields = { 'worker', ARGV[3], 'attempt', attempt, 'model', ARGV[4], 'prompt_tokens', ARGV[9], 'seed', ARGV[8] }
    local decided = m[12] and decoded(m[12]) or {}
    for _, member in ipairs({ 'tool_parser', 'reasoning_parser' }) do
      if type(decided[member]) == 'string' then
        fields[#fields + 1] = member
        fields[#fields + 1] = decided[member]
      end
    end
    if ARGV[14] and ARGV[14] ~= '' then
      fields[#fields + 1] = 'marks'
      fields[#fields + 1] = ARGV[14]
    end
    written = write_event('started', now, fields)
  else
    local counted = redis.call('HMGET', request, 'prompt_tokens', 'recomputed_tokens')
    local recomputed = (whole(counted[2]) or 0) + (whole(counted[1]) or 0) + next_index - 1
    redis.call('HSET', request, 'recomputed_tokens', recomputed)
    written = write_event('migrated', now, { 'worker', ARGV[3], 'attempt', attempt, 'resumed_at', next_index })
  end
  if not written then return { 'LOST' } end
  redis.call('HSET', request, 'state', 'in_progress', 'fence', fence, 'attempt', attempt, 'crashes', crashes,
    'lease_us', us(now + tonumber(ARGV[2]) * 1000))
  redis.call('HDEL', request, 'suspect_us')
end
return { 'OK', fence, attempt, next_index, crashes, m[4], m[11], emitted, m[12] or '', logprobs }
