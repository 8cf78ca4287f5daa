-- Store the log-probabilities of the prompt's tokens, before the first token; those of an earlier attempt stay.
-- ARGV: fence, prompt_logprobs (JSON). Replies: OK | FENCED | DONE state | LOST
local m = redis.call('HMGET', request, 'state', 'fence')
if not m[1] then return { 'LOST' } end
if terminal(m[1]) then return { 'DONE', m[1] } end
if m[2] == '' or m[2] ~= ARGV[1] then return { 'FENCED' } end
if redis.call('HEXISTS', request, 'prompt_logprobs') == 0 then
  redis.call('HSET', request, 'prompt_logprobs', ARGV[2])
end
return { 'OK' }
