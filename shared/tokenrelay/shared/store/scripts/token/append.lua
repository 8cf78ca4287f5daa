-- Append one or several tokens and renew the lease. Called for each token: what it does, reads and returns is measured.
-- ARGV: fence, index of the first token, lease_ms, then text, token, text, token, … (see appending.lua)
-- Replies: next, as a number | FENCED | DONE state | PAST | GAP next | UNREADABLE field | LOST
local m = redis.call('HMGET', request, 'fence', 'next', 'deadline_us', 'suspect_us')
if m[1] == '' or m[1] ~= ARGV[1] then -- an ended request has no fence
  local state = redis.call('HGET', request, 'state')
  if not state then return { 'LOST' } end
  if terminal(state) then return { 'DONE', state } end
  return { 'FENCED' }
end
local before, deadline = whole(m[2]), whole(m[3])
if not before then return { 'UNREADABLE', 'next' } end
if not deadline then return { 'UNREADABLE', 'deadline_us' } end
local now = now_us()
if now > deadline then return { 'PAST' } end
local lease_us = now + tonumber(ARGV[3]) * 1000
local refusal, next_index = append_tokens(tonumber(ARGV[2]), 4, before, now, lease_us)
if refusal then return refusal end
if next_index == before then redis.call('HSET', request, 'lease_us', lease_us) end
if m[4] then redis.call('HDEL', request, 'suspect_us') end
return next_index
