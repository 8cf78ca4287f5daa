"""Shared fixtures: real redis-servers, clients, and the check for leaked keys."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import HealthCheck, settings

from tests.leaks import leaked_keys
from tests.redis_servers import RedisServer
from tests.two_planes import STREAMS_URL, TWO_PLANES, SplitServer, pipeline_on

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    from redis import Redis

    from tests.polled_engine import PolledEngine
    from tokenrelay.shared.redis.batches import Pipeline
    from tokenrelay.worker.engine.transformers.models import LoadedModel

# A shell starts background jobs with SIGINT ignored, which child processes that tests interrupt would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples may be slow on a busy machine; the test's timeout ends one that hangs.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI, which installs all programs, a test that would be skipped for a missing one fails."""
    report = yield
    if (
        report.skipped
        and os.environ.get("CI", "").lower() not in ("", "0", "false")
        and not hasattr(report, "wasxfail")
    ):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: not to be skipped in CI: {reason}"
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With two servers, tests that look at both planes through one connection aren't run."""
    apart = [item for item in items if TWO_PLANES and item.get_closest_marker("one_server")]
    config.hook.pytest_deselected(items=apart)
    items[:] = [item for item in items if item not in apart]


class MakeRedisServer(Protocol):
    """Start another server: redis.conf options as arguments, `binary` and `password` by name."""

    def __call__(
        self,
        *arguments: str,
        binary: str | None = None,
        password: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> RedisServer: ...


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The server shared by all tests, emptied before each."""
    server = shared_server(tmp_path_factory)
    yield server
    server.stop()


def shared_server(folders: pytest.TempPathFactory) -> RedisServer:
    if not TWO_PLANES:
        return RedisServer(folders.mktemp("redis"))
    server = SplitServer(folders.mktemp("queues"), folders.mktemp("streams"))
    os.environ[STREAMS_URL] = server.streams.url
    return server


@pytest.fixture(autouse=True)
def planes_of_the_shared_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of a test's own is one for both planes."""
    if "make_redis_server" in request.fixturenames:
        monkeypatch.delenv(STREAMS_URL, raising=False)


@pytest.fixture(autouse=True)
def no_leaked_keys(request: pytest.FixtureRequest) -> Iterator[None]:
    """Empties the shared server before a test, and fails the test if it leaves a key without TTL or owner."""
    if "redis_server" not in request.fixturenames:
        yield
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    with server.client() as client:
        client.flushall()
        yield
        leaks = leaked_keys(client)
    assert not leaks, "the test left keys in Redis for ever:\n" + "\n".join(leaks)


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    """A client of the shared server; replies are bytes."""
    with redis_server.client() as client:
        yield client


@pytest.fixture
def pipeline(redis: Redis) -> Pipeline:
    return pipeline_on(redis)


@pytest.fixture
def make_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeRedisServer]:
    """Starts servers for one test: `make_redis_server("--maxmemory", "3mb", password="secret")`.

    They are stopped after the test, and those still up are checked for leaked keys too.
    """
    servers: list[RedisServer] = []

    def make(
        *arguments: str,
        binary: str | None = None,
        password: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> RedisServer:
        folder = tmp_path_factory.mktemp("redis")
        server = RedisServer(folder, *arguments, binary=binary, password=password, environment=environment)
        servers.append(server)
        return server

    yield make
    leaks = []
    try:
        for server in servers:
            if server.running:
                with server.client() as client:
                    leaks += leaked_keys(client)
    finally:
        for server in servers:
            server.kill()
    assert not leaks, "the test left keys in Redis for ever:\n" + "\n".join(leaks)


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """On a shared machine, waking a second thread for each of a small model's tensors costs a scheduler tick."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def start_engine(one_torch_thread: None) -> Iterator[Callable[..., PolledEngine]]:
    """Starts default engines of a model, with settings, and stops them."""
    from tests.polled_engine import PolledEngine
    from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings

    started: list[PolledEngine] = []

    def start(model: LoadedModel, **settings: int) -> PolledEngine:
        engine = PolledEngine(model, EngineSettings(**settings))
        engine.begin()
        started.append(engine)
        return engine

    yield start
    for engine in started:
        engine.stop()
