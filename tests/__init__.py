"""The tests. Helper modules are next to conftest.py, so that `from tests.redis_servers import …` works."""
