-- What `take` begins with. Each wake-up and each sweep of every idle worker comes here and mostly finds nothing: one
-- command, so that a fleet's idle workers cost next to nothing. The worker's index is looked at for a repeated take.
local sources = { KEYS[1] }
for key = 4, #KEYS, 3 do sources[#sources + 1] = KEYS[key] end
if redis.call('EXISTS', unpack(sources)) == 0 then return {} end

