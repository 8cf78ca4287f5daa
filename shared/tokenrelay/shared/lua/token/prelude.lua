-- What every script of the token plane begins with. KEYS: [1] request hash, [2] stream.
-- Replies are arrays whose first element is a word: OK, FENCED, DONE, LOST, … (design: one word per refusal).

local request, stream = KEYS[1], KEYS[2]
local TERMINAL = { completed = true, incomplete = true, failed = true, cancelled = true, expired = true }

-- One clock for every host. 1.7e15 fits a double exactly; tostring() would print it as 1.7e+15.
local function now_us()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function us(number)
  return string.format('%.0f', number)
end

-- Event k after token N is entry N-k. Redis 6.2 has no `N-*`, so the hash counts k; each token resets it.
local function write_event(kind, now, fields)
  local m = redis.call('HMGET', request, 'next', 'events')
  local number = tonumber(m[2]) + 1
  local id = (tonumber(m[1]) - 1) .. '-' .. number
  if not redis.call('XADD', stream, 'NOMKSTREAM', id, 'event', kind, 'at_us', us(now), unpack(fields)) then
    return false
  end
  redis.call('HSET', request, 'events', number)
  return true
end

-- Both keys go together: a hash without its stream would look alive, a stream without its hash unowned.
local function expire_both_at(at_ms)
  redis.call('PEXPIREAT', request, us(at_ms))
  redis.call('PEXPIREAT', stream, us(at_ms))
end

-- Write the terminal event and close the request: nothing is appended after this.
local function terminate(state, finish_reason, now, fields)
  local m = redis.call('HMGET', request, 'next', 'prompt_tokens', 'recomputed_tokens', 'retention_ms')
  local all = { 'text', fields.text or '', 'finish_reason', finish_reason, 'prompt_tokens', m[2] or '0',
    'completion_tokens', tonumber(m[1]) - 1, 'recomputed_tokens', m[3] or '0' }
  for _, name in ipairs({ 'code', 'message', 'cancelled_by' }) do
    if fields[name] and fields[name] ~= '' then
      all[#all + 1] = name
      all[#all + 1] = fields[name]
    end
  end
  if not write_event(state, now, all) then return false end
  redis.call('HSET', request, 'state', state, 'finished_by', fields.finished_by or '', 'fence', '')
  redis.call('HDEL', request, 'lease_us', 'suspect_us')
  expire_both_at(math.floor(now / 1000) + (tonumber(m[4]) or 60000))
  return true
end

-- Tell the worker, if there is one, without waiting for its next append or heartbeat. A lost message costs that wait.
local function announce_end()
  redis.call('PUBLISH', 'tokenrelay:ended', string.match(request, '{(.-)}'))
end

-- Tokens in ARGV from `first_argument` on, as text, token, text, token, …; the first has index `index`.
-- What is already written is skipped, so a retry after a lost reply is harmless. Each token renews the lease.
-- Returns nil and the next index, or the refusal.
local function append_tokens(index, first_argument, next_index, now, lease_us)
  if index > next_index then return { 'GAP', next_index } end
  local at_us = us(now)
  for argument = first_argument, #ARGV, 2 do
    if index == next_index then
      local id = redis.call('XADD', stream, 'NOMKSTREAM', index .. '-0',
        'text', ARGV[argument], 'token', ARGV[argument + 1], 'at_us', at_us)
      if not id then return { 'LOST' } end
      next_index = next_index + 1
      -- With each token, not once at the end: a script that dies half-way isn't rolled back.
      redis.call('HSET', request, 'lease_us', lease_us, 'next', next_index, 'events', 0, 'crashes', 0)
    end
    index = index + 1
  end
  return nil, next_index
end
