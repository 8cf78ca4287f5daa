-- Append one or several tokens and renew the lease. Called for each token: what it does, reads and returns is measured.
-- ARGV: fence, index of the first token, lease_ms, then text, token, text, token, … (see appending.lua)
-- Replies: next, as a number | FENCED | DONE state | PAST | GAP next | UNREADABLE field | LOST
local now = now_us()
local at_us = string.format('%.0f', now) -- once: redis.call prints a number anew in each command
local lease_ms, lease_us

local function append(first, last)
  local m = redis.call('HMGET', request, 'fence', 'next', 'deadline_us', 'suspect_us')
  if m[1] == '' or m[1] ~= ARGV[first] then -- an ended request has no fence
    local state = redis.call('HGET', request, 'state')
    if not state then return { 'LOST' } end
    if terminal(state) then return { 'DONE', state } end
    return { 'FENCED' }
  end
  local before, deadline = whole(m[2]), whole(m[3])
  if not before then return { 'UNREADABLE', 'next' } end
  if not deadline then return { 'UNREADABLE', 'deadline_us' } end
  if now > deadline then return { 'PAST' } end
  if lease_ms ~= ARGV[first + 2] then
    lease_ms = ARGV[first + 2]
    lease_us = string.format('%.0f', now + tonumber(lease_ms) * 1000)
  end
  local refusal, next_index = append_tokens(tonumber(ARGV[first + 1]), first + 3, last, before, at_us, lease_us)
  if refusal then return refusal end
  if next_index == before then redis.call('HSET', request, 'lease_us', lease_us) end
  if m[4] then redis.call('HDEL', request, 'suspect_us') end
  return next_index
end

if #KEYS == 2 then return append(1, #ARGV) end
-- Joined appends: the keys of each request, and of each the number of its arguments, then these. A reply, or an error,
-- to each. That takes half the time of as many calls.
local replies, argument = {}, 1
for key = 1, #KEYS, 2 do
  request, stream = KEYS[key], KEYS[key + 1]
  local count = tonumber(ARGV[argument])
  local ended, reply = pcall(append, argument + 1, argument + count) -- foreign keys are an error of this request alone
  if not ended and type(reply) == 'string' then reply = { err = reply } end -- Redis 6.2
  replies[#replies + 1] = reply
  argument = argument + count + 1
end
return replies
