-- What every script of the token plane begins with. KEYS: [1] request hash, [2] stream.
-- Replies are arrays whose first element is a word: OK, FENCED, DONE, LOST, … (design: one word per refusal).
-- Each function is made anew in each call, so a script is given only what it needs: see commands.py.

local request, stream = KEYS[1], KEYS[2]

local function terminal(state)
  return string.find(' completed incomplete failed cancelled expired ', ' ' .. state .. ' ', 1, true)
end

-- One clock for every host. 1.7e15 fits a double exactly; tostring() would print it as 1.7e+15.
local function now_us()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function us(number)
  return string.format('%.0f', number)
end
