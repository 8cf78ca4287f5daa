-- End a request that no worker can continue, because of what its keys hold. Not fenced: no worker owns it any more, or
-- the one that does has found it out.
-- ARGV: code, message. Replies: OK | DONE state | LOST
local m = redis.call('HMGET', request, 'state', 'deadline_us', 'next', 'attempt')
if not m[1] then return { 'LOST' } end
if terminal(m[1]) then return { 'DONE', m[1] } end
local now = now_us()
-- Readers look at the hash before the stream: what they couldn't read would keep the end from them.
redis.call('HSET', request, 'deadline_us', us(whole(m[2]) or now), 'next', us(position() + 1), 'attempt', whole(m[4]) or 0)
-- What was never started can't have failed, by the readers' state machine.
local tokens, events = position()
if tokens == '0' and events == 1 then
  write_event('started', now, { 'worker', '', 'attempt', 1, 'model', '', 'prompt_tokens', 0, 'seed', 0 })
end
if not terminate('failed', 'error', now, { code = ARGV[1], message = ARGV[2] }) then return { 'LOST' } end
announce_end()
return { 'OK' }
