"""`tokenrelay serve`: runs the application on uvicorn."""

from __future__ import annotations

import gc
import logging
import resource
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, cast

import uvicorn

from tokenrelay.gateway.app import create_app
from tokenrelay.gateway.http.uvicorn_protocol import LimitedProtocol
from tokenrelay.gateway.metrics import GatewayMetrics
from tokenrelay.producer._core.drivers import check_servers
from tokenrelay.producer.local import LocalRedis, LocalWorker
from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.metrics.exposition import Exposition
from tokenrelay.shared.settings import GatewaySettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

log = logging.getLogger(__name__)

_BACKLOG: Final = 2048
_OTHER_FILES: Final = 96
_GC_THRESHOLDS: Final = (5_000, 500, 100)
"""With a thousand readers a full collection took 50 to 160 ms, and no reader got a token meanwhile. These thresholds
run it after 2.5 million allocations instead."""
_DRAIN_S: Final = 5
"""Time limit for open responses after SIGTERM. Event streams end at once; clients resume at another gateway."""


def serve(*, demo: bool, write_message: Callable[[str], None], **given: str | int | None) -> None:
    """Serve until SIGTERM or Ctrl-C. `write_message` prints messages for the user, such as the address.

    Raises SettingsError, also if the address can't be bound, and RedisUnusable.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with ExitStack() as stack:
        if demo:
            write_message("starting a Redis and a worker with the bundled model …")
            url = stack.enter_context(LocalRedis()).url
            stack.enter_context(LocalWorker(url))
            given["redis_url"] = given["streams_url"] = url
        settings = GatewaySettings.from_environment(**given)
        check_servers(settings.urls)
        _allow_files(settings.max_connections)
        app = create_app(settings, demo=demo)
        if settings.metrics_port is not None:
            exposition = Exposition(settings.metrics_host, settings.metrics_port)
            exposition.add(GatewayMetrics(app.state.gateway).families)
            stack.callback(exposition.close)
        listener = stack.enter_context(_listener(settings.http_host, settings.http_port))
        host, port = listener.getsockname()[:2]
        write_message(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        _run(app, settings, listener)


def _run(app: FastAPI, settings: GatewaySettings, listener: socket.socket) -> None:
    gc.set_threshold(*_GC_THRESHOLDS)
    Server(configuration(app, settings)).run(sockets=[listener])


class Server(uvicorn.Server):
    """uvicorn's server. On shutdown it ends event streams first, which uvicorn would wait for."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        cast("FastAPI", self.config.app).state.gateway.attachments.end_streams()
        await super().shutdown(sockets)


def configuration(app: FastAPI, settings: GatewaySettings) -> uvicorn.Config:
    """uvicorn's configuration: one process, one event loop, our limits."""
    return uvicorn.Config(
        app,
        http=LimitedProtocol.with_limits(settings.receive_timeout_s, settings.max_connections),
        h11_max_incomplete_event_size=settings.max_header_bytes,
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=_DRAIN_S,
        log_config=None,
    )


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise SettingsError(
            f"TOKENRELAY_HTTP_HOST, TOKENRELAY_HTTP_PORT: can't listen on {host}:{port}: {error}"
        ) from None


def _allow_files(connections: int) -> None:
    """Raise the soft limit on open files for this many connections, up to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
