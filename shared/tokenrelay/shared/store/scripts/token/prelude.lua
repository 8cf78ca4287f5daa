-- What every script of the token plane begins with. KEYS: [1] request hash, [2] stream.
-- Replies are arrays whose first element is a word: OK, FENCED, DONE, LOST, … (design: one word per refusal).
-- UNREADABLE field: the hash holds no number there, so no worker can continue the request.
-- Each function is made anew in each call, so a script is given only what it needs: see scripts/__init__.py.

local request, stream = KEYS[1], KEYS[2]

local function terminal(state)
  local ends = ' completed incomplete failed cancelled expired '
  return not string.find(state, ' ', 1, true) and string.find(ends, ' ' .. state .. ' ', 1, true)
end

-- The number that a field holds; nil for anything else: whoever may write to Redis may have written any bytes there.
-- Sixteen digits are microseconds until the year 2286, and exact in a double.
local function whole(value)
  return value and #value <= 16 and string.find(value, '^%d+$') and tonumber(value) or nil
end

-- One clock for every host. 1.7e15 fits a double exactly, and redis.call writes all of a number's digits; tostring()
-- would print 1.7e+15.
local function now_us()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end
