-- Put a job on its queue, as RQ's own enqueue does; a repeat finds it and changes nothing.
-- KEYS: [1] job, [2] queue list, [3] set of queues, [4] channel that idle workers listen to; for a further request of
--   one call [5] the first one's job: where that is enqueued this one is, at any depth, else neither
-- ARGV: job ID, ttl in seconds, depth limit, then field, value, …
-- Replies: OK depth | ALREADY status | FULL depth
local job, queue, queues, first = KEYS[1], KEYS[2], KEYS[3], KEYS[5]
local status = redis.call('HGET', job, 'status')
if status then return { 'ALREADY', status } end
local depth = redis.call('LLEN', queue)
if first and redis.call('EXISTS', first) == 0 or not first and depth >= tonumber(ARGV[3]) then return { 'FULL', depth } end
redis.call('SADD', queues, queue)
redis.call('HSET', job, unpack(ARGV, 4))
redis.call('EXPIRE', job, ARGV[2])
redis.call('RPUSH', queue, ARGV[1])
redis.call('PUBLISH', KEYS[4], queue)
return { 'OK', depth + 1 }
