"""The tests. Helpers stand beside conftest.py, so that `from tests.redis_servers import …` works."""
