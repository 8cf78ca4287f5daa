-- What the first claim of a request decided (`effective`), for the script that claims.

local function decoded(json)
  local ok, value = pcall(cjson.decode, json)
  return ok and type(value) == 'table' and value or nil
end

local function equal(one, other)
  if type(one) ~= 'table' or type(other) ~= 'table' then return one == other end
  for name, value in pairs(one) do
    if not equal(value, other[name]) then return false end
  end
  for name in pairs(other) do
    if one[name] == nil then return false end
  end
  return true
end

-- The member of `decided` that this worker can't do exactly; nil where it can do all. A budget below its own is no
-- obstacle, nor is any value for the draw: those are numbers that every worker obeys.
local NUMBERS = { temperature = true, top_k = true, top_p = true, min_p = true, repetition_penalty = true }
local function disobeyed(decided, offered)
  for member, value in pairs(decided) do
    local own = offered[member]
    if own == nil then return member end
    if member == 'budget' then
      if type(value) ~= 'number' or value > own then return member end
    elseif not NUMBERS[member] and not equal(value, own) then
      return member
    end
  end
  return nil
end
