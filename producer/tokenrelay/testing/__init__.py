"""Test producers and consumers without torch, a server or a GPU: a scripted worker on fakeredis, and pytest fixtures.

The worker writes through the same Lua scripts as a real one, so tests read the real wire format.
See docs/testing.md. Needs `pip install 'tokenrelay[testing]'`.
"""

from tokenrelay.testing.fakes import fake_async_redis, fake_redis
from tokenrelay.testing.script import Script, answers, fails, stalls
from tokenrelay.testing.scripted_worker import ScriptedWorker

__all__ = ["Script", "ScriptedWorker", "answers", "fails", "fake_async_redis", "fake_redis", "stalls"]
