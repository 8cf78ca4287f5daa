-- Append the last tokens, if any, and the terminal event, in one call; a repeat by the same fence is OK.
-- ARGV: fence, index of the first token, state, finish_reason, text, code, message, then text, token, … (see appending.lua)
-- Replies: OK | FENCED | DONE state | GAP next | UNREADABLE field | LOST
local m = redis.call('HMGET', request, 'state', 'fence', 'next', 'finished_by')
if not m[1] then return { 'LOST' } end
if terminal(m[1]) then
  if m[4] ~= '' and m[4] == ARGV[1] then return { 'OK' } end
  return { 'DONE', m[1] }
end
if m[2] == '' or m[2] ~= ARGV[1] then return { 'FENCED' } end
local next_index = whole(m[3])
if not next_index then return { 'UNREADABLE', 'next' } end
local now = now_us()
local refusal = append_tokens(tonumber(ARGV[2]), 8, #ARGV, next_index, now, now)
if refusal then return refusal end
if not terminate(ARGV[3], ARGV[4], now,
  { text = ARGV[5], code = ARGV[6], message = ARGV[7], finished_by = ARGV[1] }) then
  return { 'LOST' }
end
return { 'OK' }
