-- Tokens, for the scripts that write them.

-- No token ID has as many characters: where the argument is longer, a blank and `logprobs` (JSON) follow the ID.
local MAX_ID_CHARS = 10

-- Tokens in ARGV from `first` to `last`, as text, token, text, token, …; the first has index `index`.
-- What is already written is skipped, so a retry after a lost reply is harmless. Each token renews the lease.
-- Returns nil and the next index, or the refusal.
local function append_tokens(index, first, last, next_index, at_us, lease_us)
  if index > next_index then return { 'GAP', next_index } end
  for argument = first, last, 2 do
    if index == next_index then
      local token, id = ARGV[argument + 1], nil
      if #token <= MAX_ID_CHARS then
        id = redis.call('XADD', stream, 'NOMKSTREAM', index .. '-0',
          'text', ARGV[argument], 'token', token, 'at_us', at_us)
      else
        local token_id, logprobs = string.match(token, '^(%d+) (.*)$')
        id = redis.call('XADD', stream, 'NOMKSTREAM', index .. '-0',
          'text', ARGV[argument], 'token', token_id, 'at_us', at_us, 'logprobs', logprobs)
      end
      if not id then return { 'LOST' } end
      next_index = next_index + 1
      -- With each token, not once at the end: a script that dies half-way isn't rolled back.
      redis.call('HSET', request, 'lease_us', lease_us, 'next', next_index, 'events', '0', 'crashes', '0')
    end
    index = index + 1
  end
  return nil, next_index
end
