-- Become, or stay, the one worker that maintains these queues; with a ttl of 0, leave that to others.
-- KEYS: [1] lock. ARGV: owner, ttl in milliseconds. Replies: OK | BUSY milliseconds (for which it is another's)
local owner = redis.call('TYPE', KEYS[1])['ok'] == 'string' and redis.call('GET', KEYS[1])
local left_ms = redis.call('PTTL', KEYS[1])
-- One without an expiry is nobody's: it would keep all from maintaining for ever.
if owner and owner ~= ARGV[1] and left_ms > 0 then return { 'BUSY', left_ms } end
if ARGV[2] ~= '0' then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
elseif owner == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return { 'OK' }
