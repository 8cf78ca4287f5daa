-- Write a new request and its `queued` event; a repeat with the same body attaches to what is there.
-- ARGV: body_sha256, deadline_ms, retention_ms, owner, metadata, queue, request (JSON), and its wire version (absent: 1)
-- Replies: OK deadline_us | ATTACHED state | CONFLICT
local state, body = unpack(redis.call('HMGET', request, 'state', 'body_sha256'))
if state then
  if body ~= ARGV[1] then return { 'CONFLICT' } end
  return { 'ATTACHED', state }
end
local wire = ARGV[8] or '1'
local now = now_us()
local deadline = now + tonumber(ARGV[2]) * 1000
-- HSET comes first: after a DEL, which needs no memory, Redis would no longer refuse the script when it's full.
redis.call('HSET', request, 'wire', wire, 'request', ARGV[7], 'body_sha256', ARGV[1], 'state', 'queued', 'fence', '',
  'attempt', 0, 'crashes', 0, 'next', 1, 'events', 1, 'deadline_us', us(deadline), 'retention_ms', ARGV[3],
  'owner', ARGV[4], 'metadata', ARGV[5], 'queue', ARGV[6])
redis.call('DEL', stream)
if ARGV[5] == '' then
  redis.call('XADD', stream, '0-1', 'event', 'queued', 'at_us', us(now), 'wire', wire)
else
  redis.call('XADD', stream, '0-1', 'event', 'queued', 'at_us', us(now), 'wire', wire, 'metadata', ARGV[5])
end
expire_both_at(math.floor(deadline / 1000) + tonumber(ARGV[3]))
return { 'OK', us(deadline) }
