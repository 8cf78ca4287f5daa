"""Both releases, and a Redis for each test."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.compat.release import COMMIT, ROOT, Release, earlier, today

if TYPE_CHECKING:
    from tests.redis_servers import RedisServer


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Release]:
    """By name: `today`, and `earlier`, which a checkout without history doesn't have."""
    folder = tmp_path_factory.mktemp("compat")
    has_commit = ["git", "-C", str(ROOT), "cat-file", "-e", f"{COMMIT}^{{commit}}"]
    if subprocess.run(has_commit, capture_output=True, check=False).returncode:
        pytest.skip(f"git has no commit {COMMIT} here: fetch the whole history")
    return {"today": today(folder / "today"), "earlier": earlier(folder / "earlier")}


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    return redis_server.url
