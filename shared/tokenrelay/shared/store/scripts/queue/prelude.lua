-- What the scripts that give a job up begin with.
-- KEYS: [1] job, [2] wip, [3] executions of the job, [4] the worker's execution index, [5] claimed, [6] queue list,
--       [7] execution, [8] finished, [9] failed, [10] canceled registry, [11] results, [12] worker, [13] dependents,
--       [14] channel that idle workers listen to
-- ARGV: [1] job ID, [2] execution ID
local job, job_id, composite = KEYS[1], ARGV[1], ARGV[1] .. ':' .. ARGV[2]

-- Deleted in RQ, or a key of another type has its name: there is no job that could be told anything.
-- Asked by pcall: producers close jobs too, and their Redis user may not send TYPE.
local function job_is_gone()
  return redis.call('EXISTS', job) == 0 or type(redis.pcall('HGET', job, 'status')) == 'table'
end

local function drop_execution()
  redis.call('DEL', KEYS[7])
  redis.call('ZREM', KEYS[2], composite)
  redis.call('ZREM', KEYS[3], ARGV[2])
  redis.call('SREM', KEYS[4], composite)
end

-- Every execution of the job, not only the caller's: one that died with its host would stay in wip under its
-- successor, and RQ's clean-up, run by anybody who looks, would fail a job that runs.
local function drop_all_executions()
  local prefix = string.sub(KEYS[7], 1, #KEYS[7] - #ARGV[2])
  for _, execution_id in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
    redis.call('DEL', prefix .. execution_id)
    redis.call('ZREM', KEYS[2], job_id .. ':' .. execution_id)
  end
  redis.call('DEL', KEYS[3])
  drop_execution()
end
