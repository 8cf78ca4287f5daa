-- Forget this execution of a job that somebody else holds; job, queue and `claimed` stay as they are.
-- Replies: OK
drop_execution()
return { 'OK' }
