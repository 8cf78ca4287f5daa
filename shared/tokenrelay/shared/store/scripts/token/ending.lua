-- Events and ends, for the scripts that write them.

local function us(number)
  return string.format('%.0f', number)
end

-- How many tokens the stream holds, and how many events come behind the last of them. The last entry tells, not the
-- hash: an end can then be written whatever bytes the hash holds.
local function position()
  local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  if not last then return '0', 0 end
  local tokens, events = string.match(last[1], '^(%d+)-(%d+)$')
  return tokens, tonumber(events)
end

-- Event k after token N is entry N-k. Redis 6.2 has no `N-*`.
local function write_event(kind, now, fields)
  local tokens, events = position()
  local number = events + 1
  local id = tokens .. '-' .. number
  if not redis.call('XADD', stream, 'NOMKSTREAM', id, 'event', kind, 'at_us', us(now), unpack(fields)) then
    return false
  end
  redis.call('HSET', request, 'events', number)
  return true
end

-- Thirty days, the most that the setting takes.
local MAX_RETENTION_MS = 2592000000

-- Both keys go together: a hash without its stream would look alive, a stream without its hash unowned.
local function expire_both_at(at_ms)
  redis.call('PEXPIREAT', request, us(at_ms))
  redis.call('PEXPIREAT', stream, us(at_ms))
end

-- Write the terminal event and close the request: nothing is appended after this.
local function terminate(state, finish_reason, now, fields)
  local m = redis.call('HMGET', request, 'prompt_tokens', 'recomputed_tokens', 'retention_ms')
  local all = { 'text', fields.text or '', 'finish_reason', finish_reason, 'prompt_tokens', whole(m[1]) or 0,
    'completion_tokens', (position()), 'recomputed_tokens', whole(m[2]) or 0 }
  for _, name in ipairs({ 'code', 'message', 'cancelled_by' }) do
    if fields[name] and fields[name] ~= '' then
      all[#all + 1] = name
      all[#all + 1] = fields[name]
    end
  end
  if not write_event(state, now, all) then return false end
  redis.call('HSET', request, 'state', state, 'finished_by', fields.finished_by or '', 'fence', '')
  redis.call('HDEL', request, 'lease_us', 'suspect_us')
  expire_both_at(math.floor(now / 1000) + math.min(whole(m[3]) or 60000, MAX_RETENTION_MS))
  return true
end

-- Tell the worker, if there is one, without waiting for its next append or heartbeat. A lost message costs that wait.
local function announce_end()
  redis.call('PUBLISH', 'tokenrelay:ended', string.match(request, '{(.-)}'))
end
