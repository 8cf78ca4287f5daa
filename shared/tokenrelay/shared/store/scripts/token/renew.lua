-- Keep the lease while engine and publisher make progress; DONE tells the worker of a cancellation.
-- ARGV: fence, lease_ms. Replies: OK | FENCED | DONE state | PAST | UNREADABLE field | LOST
local m = redis.call('HMGET', request, 'state', 'fence', 'deadline_us')
if not m[1] then return { 'LOST' } end
if terminal(m[1]) then return { 'DONE', m[1] } end
if m[2] == '' or m[2] ~= ARGV[1] then return { 'FENCED' } end
local now, deadline = now_us(), whole(m[3])
if not deadline then return { 'UNREADABLE', 'deadline_us' } end
redis.call('HSET', request, 'lease_us', now + tonumber(ARGV[2]) * 1000)
redis.call('HDEL', request, 'suspect_us')
-- A request that waits for its first token appends nothing that would be told so.
if now > deadline then return { 'PAST' } end
return { 'OK' }
