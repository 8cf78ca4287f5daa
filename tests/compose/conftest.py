"""A project of docker compose for the tests, under a name and a port of its own: images built, processes killed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.redis_servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final = "tokenrelay-test"
DRAIN_TIMEOUT_S: Final = 5
PASSWORD: Final = secrets.token_hex(16)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "compose: needs docker compose, builds images")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.compose)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(1800))


class Compose:
    """`docker compose` on the tests' project."""

    def __init__(self) -> None:
        self.port, self.dashboard_port = free_port(), free_port()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TOKENRELAY_")},
            "REDIS_PORT": str(self.port),
            "DASHBOARD_PORT": str(self.dashboard_port),
            "HTTP_PORT": str(free_port()),
            "DRAIN_TIMEOUT_S": str(DRAIN_TIMEOUT_S),
            "STOP_GRACE_PERIOD": f"{DRAIN_TIMEOUT_S + 15}s",
            "PRODUCER_PASSWORD": PASSWORD,
        }

    def __call__(
        self, *arguments: str, check: bool = True, timeout_s: float = 1500
    ) -> subprocess.CompletedProcess[str]:
        command = ["docker", "compose", "-p", PROJECT, *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False, timeout=timeout_s
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    @property
    def producer_url(self) -> str:
        """What .env.example gives a producer on the host."""
        told = (ROOT / ".env.example").read_text("utf-8").partition("TOKENRELAY_REDIS_URL=")[2].split()[0]
        assert "PASSWORD" in told
        return told.replace("PASSWORD", PASSWORD).replace(":6379/", f":{self.port}/")

    def containers(self, service: str) -> list[str]:
        return sorted(self("ps", "-q", service).stdout.split())


def inspect(thing: str) -> dict[str, Any]:
    """What `docker inspect` says of one container or image."""
    done = subprocess.run(["docker", "inspect", thing], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)[0]
    return found


def _missing() -> str | None:
    """Why these tests can't run here."""
    if not shutil.which("docker"):
        return "there is no docker"
    for command in (["docker", "compose", "version"], ["docker", "info"]):
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return f"{' '.join(command)} fails"
    return None


@pytest.fixture(scope="session")
def compose() -> Iterator[Compose]:
    """The project, built and not yet up; gone with its volumes at the end."""
    if reason := _missing():
        message = f"the compose tests need docker compose: {reason}"
        pytest.skip(message)
    compose = Compose()
    compose("down", "-v", "--remove-orphans")
    compose("build", "worker", "ask", "gateway")
    yield compose
    compose("down", "-v", "--remove-orphans")
