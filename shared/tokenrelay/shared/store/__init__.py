"""The one door to Redis: what stands in its keys, and the scripts that change them. Nothing outside names a script, a
field of a hash or the word of a reply.

Two planes that share no batch: a request's own keys (`requests`) and RQ's (`queues`).
"""
