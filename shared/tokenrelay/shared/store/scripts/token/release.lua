-- Clear the fence of an execution that hands the request back, or that died (crashed = 1): whatever it still
-- has in its socket buffer is FENCED from now on.
-- ARGV: execution_id, crashed (0 or 1). Replies: OK | FENCED | DONE state | LOST
local m = redis.call('HMGET', request, 'state', 'fence', 'attempt', 'crashes')
if not m[1] then return { 'LOST' } end
if terminal(m[1]) then return { 'DONE', m[1] } end
if m[2] ~= tostring(m[3]) .. ':' .. ARGV[1] then return { 'FENCED' } end
redis.call('HSET', request, 'fence', '')
redis.call('HDEL', request, 'lease_us', 'suspect_us')
redis.call('HSET', request, 'crashes', (whole(m[4]) or 0) + tonumber(ARGV[2]))
return { 'OK' }
