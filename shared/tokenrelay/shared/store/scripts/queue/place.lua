-- Take a place among an owner's requests, behind all that came before: one clock, and the order in which they came.
-- KEYS: [1] the owner's sorted set. ARGV: request ID. Replies: {seconds, microseconds}, the place's time
local t = redis.call('TIME')
redis.call('ZADD', KEYS[1], 'NX', t[1] .. string.format('%06d', tonumber(t[2])), ARGV[1])
return t
