-- Look at a lease that may have run out. The first look only marks it; a second one, suspicion_ms later, releases it.
-- Two looks because Redis may have stalled, not the worker, which then renews in between.
-- ARGV: suspicion_ms. Replies: LIVE | SUSPECT | RELEASED | FREE (no fence: released or never claimed) | DONE state | LOST
local m = redis.call('HMGET', request, 'state', 'fence', 'lease_us', 'suspect_us', 'crashes')
if not m[1] then return { 'LOST' } end
if terminal(m[1]) then return { 'DONE', m[1] } end
if m[2] == '' then return { 'FREE' } end
-- A time that can't be read is one that has passed, or was never written.
local now, lease, suspect = now_us(), whole(m[3]) or 0, whole(m[4])
if now <= lease then return { 'LIVE' } end
if not suspect then
  redis.call('HSET', request, 'suspect_us', now)
  return { 'SUSPECT' }
end
if now - suspect < tonumber(ARGV[1]) * 1000 then return { 'SUSPECT' } end
redis.call('HSET', request, 'fence', '')
redis.call('HDEL', request, 'lease_us', 'suspect_us')
redis.call('HSET', request, 'crashes', (whole(m[5]) or 0) + 1)
return { 'RELEASED' }
