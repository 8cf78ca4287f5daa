-- End a request that nobody can go on with, because of what its keys hold. Not fenced: no worker owns it any more, or
-- the one that does has found it out.
-- ARGV: code, message. Replies: OK | DONE state | LOST
local state = redis.call('HGET', request, 'state')
if not state then return { 'LOST' } end
if terminal(state) then return { 'DONE', state } end
if not terminate('failed', 'error', now_us(), { code = ARGV[1], message = ARGV[2] }) then return { 'LOST' } end
announce_end()
return { 'OK' }
