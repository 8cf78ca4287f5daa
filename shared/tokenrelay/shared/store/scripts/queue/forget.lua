-- Take workers whose registration ran out from RQ's sets. One that registers again meanwhile stays: both in one script.
-- KEYS: the sets. ARGV: worker keys. Replies: OK how many
local dead = {}
for _, worker in ipairs(ARGV) do
  if redis.call('EXISTS', worker) == 0 then dead[#dead + 1] = worker end
end
if #dead > 0 then
  for _, set in ipairs(KEYS) do redis.call('SREM', set, unpack(dead)) end
end
return { 'OK', #dead }
