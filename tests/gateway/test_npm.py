"""OpenAI's endpoints, called by the unmodified npm package `openai`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.writers import serving

if TYPE_CHECKING:
    from tests.gateway.live import LiveGateway, WakingWriter
    from tests.redis_servers import RedisServer

SCRIPT = Path(__file__).with_name("openai_client.mjs")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not shutil.which("npm"), reason="there is no npm")
def test_the_npm_package(gateway: LiveGateway, redis_server: RedisServer, writer: WakingWriter, tmp_path: Path) -> None:
    del writer  # it is what registers the worker
    shutil.copy(SCRIPT, tmp_path)
    install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(tmp_path), "openai@7"]
    installed = subprocess.run(install, capture_output=True, text=True, check=False, timeout=200)
    if installed.returncode:
        pytest.skip(f"npm can't install it: {installed.stderr[-200:]}")
    with serving(redis_server.url):
        done = subprocess.run(
            ["node", str(tmp_path / SCRIPT.name), f"{gateway.url}/v1"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "chat": "It is sunny and warm.",
        "streamed": "It is sunny and warm.",
        "numbers": list(range(1, 14)),
        "response": "It is sunny and warm.",
        "models": ["weather"],
        "refused": [400, "n"],
    }
