"""Live gateways for tests: the application on a real uvicorn in a thread, and a writer that publishes wake messages."""

from __future__ import annotations

import socket
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
from pydantic import SecretStr

from tests.waiting import wait_until
from tests.writers import AnnouncingWriter
from tokenrelay.gateway.app import create_app
from tokenrelay.gateway.server import Server, configuration
from tokenrelay.shared.settings import GatewaySettings
from tokenrelay.shared.store.jobs import iso
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenrelay.gateway.core.gateway import Gateway


class LiveGateway:
    """A gateway on its own port, until `stop`."""

    def __init__(self, redis_url: str, **settings: Any) -> None:
        self.settings = GatewaySettings(redis_url=SecretStr(redis_url), **settings)
        self._app = create_app(self.settings)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = Server(configuration(self._app, self.settings))
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), name="gateway")
        self._thread.start()
        wait_until(lambda: self._server.started)

    @property
    def gateway(self) -> Gateway:
        gateway: Gateway = self._app.state.gateway
        return gateway

    @property
    def readers(self) -> int:
        """Number of clients that read a stream here."""
        return sum(feed.readers for feed in list(self.gateway.hub.feeds.values()))

    @property
    def unsent(self) -> int:
        """Bytes buffered in this process for clients with full sockets."""
        connections: Any = list(self._server.server_state.connections)
        return sum(each.transport.get_write_buffer_size() for each in connections)

    @property
    def connections(self) -> int:
        return len(self._server.server_state.connections)

    @property
    def keep_alive_s(self) -> int:
        """How long uvicorn keeps an idle connection."""
        return self._server.config.timeout_keep_alive

    def call(self, function: Callable[[], None]) -> None:
        """Run it in the gateway's event loop."""
        (task, *_) = self.gateway.background.tasks
        task.get_loop().call_soon_threadsafe(function)

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, headers=headers)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)
        self._listener.close()
        assert not self._thread.is_alive()


class WakingWriter(AnnouncingWriter):
    """A writer that publishes wake messages and registers its model, as workers do."""

    def appear(self) -> None:
        super().appear()
        worker = keys.rq_worker(self.name)
        self.redis.hset(worker, mapping={"queues": ",".join(keys.queues(self.model)), "birth": iso(datetime.now(UTC))})
        self.redis.sadd(keys.RQ_WORKERS, worker)
