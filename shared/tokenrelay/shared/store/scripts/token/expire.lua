-- End the request if its deadline is past: `expired` before the first token, `incomplete` after it.
-- Replies: OK state | EARLY microseconds left | DONE state | UNREADABLE field | LOST
local m = redis.call('HMGET', request, 'state', 'deadline_us')
if not m[1] then return { 'LOST' } end
if terminal(m[1]) then return { 'DONE', m[1] } end
local now, deadline = now_us(), whole(m[2])
if not deadline then return { 'UNREADABLE', 'deadline_us' } end
if now <= deadline then return { 'EARLY', us(deadline - now) } end
local state = position() ~= '0' and 'incomplete' or 'expired'
if not terminate(state, 'deadline', now, {}) then return { 'LOST' } end
announce_end()
return { 'OK', state }
