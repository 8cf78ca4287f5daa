-- Redis's clock, for the scripts that date something: a worker's own may be wrong.

local clock = redis.call('TIME')
local now = tonumber(clock[1])

-- RQ's time format. The calendar is computed as in Howard Hinnant's civil_from_days: Lua has no os.date here.
local function iso_now()
  local z = math.floor(now / 86400) + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local shifted = math.floor((5 * doy + 2) / 153)
  local month = shifted < 10 and shifted + 3 or shifted - 9
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%06dZ', yoe + era * 400 + (month <= 2 and 1 or 0), month,
    doy - math.floor((153 * shifted + 2) / 5) + 1, math.floor(now % 86400 / 3600), math.floor(now % 3600 / 60),
    now % 60, tonumber(clock[2]))
end
