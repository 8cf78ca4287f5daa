-- End the request as cancelled, whoever owns it: nobody waits for a worker that is gone.
-- ARGV: cancelled_by. Replies: OK fence | DONE state | LOST
local m = redis.call('HMGET', request, 'state', 'fence')
if not m[1] then return { 'LOST' } end
if terminal(m[1]) then return { 'DONE', m[1] } end
redis.call('HSET', request, 'cancelled_by', ARGV[1])
if not terminate('cancelled', 'cancelled', now_us(), { cancelled_by = ARGV[1] }) then return { 'LOST' } end
announce_end()
return { 'OK', m[2] }
