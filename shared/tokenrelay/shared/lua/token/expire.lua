-- End the request if its deadline is past: `expired` before the first token, `incomplete` after it.
-- Replies: OK state | EARLY microseconds left | DONE state | LOST
local m = redis.call('HMGET', request, 'state', 'deadline_us', 'next')
if not m[1] then return { 'LOST' } end
if terminal(m[1]) then return { 'DONE', m[1] } end
local now = now_us()
if now <= tonumber(m[2]) then return { 'EARLY', us(tonumber(m[2]) - now) } end
local state = tonumber(m[3]) > 1 and 'incomplete' or 'expired'
if not terminate(state, 'deadline', now, {}) then return { 'LOST' } end
announce_end()
return { 'OK', state }
