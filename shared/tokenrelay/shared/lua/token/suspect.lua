-- Look at a lease that may have run out. The first look only marks it; a second one, suspicion_ms later, releases it.
-- Two looks because Redis may have stalled, not the worker, which then renews in between.
-- ARGV: suspicion_ms. Replies: LIVE | SUSPECT | RELEASED | FREE (no fence: released or never claimed) | DONE state | LOST
local m = redis.call('HMGET', request, 'state', 'fence', 'lease_us', 'suspect_us')
if not m[1] then return { 'LOST' } end
if terminal(m[1]) then return { 'DONE', m[1] } end
if m[2] == '' then return { 'FREE' } end
local now = now_us()
if now <= tonumber(m[3]) then return { 'LIVE' } end
if not m[4] then
  redis.call('HSET', request, 'suspect_us', us(now))
  return { 'SUSPECT' }
end
if now - tonumber(m[4]) < tonumber(ARGV[1]) * 1000 then return { 'SUSPECT' } end
redis.call('HSET', request, 'fence', '')
redis.call('HDEL', request, 'lease_us', 'suspect_us')
redis.call('HINCRBY', request, 'crashes', 1)
return { 'RELEASED' }
