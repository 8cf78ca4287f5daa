"""`tokenrelay serve`: the application on uvicorn, until it's told to stop."""

from __future__ import annotations

import gc
import logging
import resource
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, cast

import uvicorn

from tokenrelay.gateway.app import create_app
from tokenrelay.gateway.core.demo import Demo
from tokenrelay.gateway.http.protocol import LimitedProtocol
from tokenrelay.gateway.metrics import GatewayMetrics
from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.exposition import Exposition
from tokenrelay.shared.redis.connections import address, check_fit, connect, explain
from tokenrelay.shared.settings import GatewaySettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI

log = logging.getLogger(__name__)

_BACKLOG: Final = 2048
_OTHER_FILES: Final = 96
_GC_THRESHOLDS: Final = (5_000, 500, 100)
"""With a thousand readers a full collection took 50 to 160 ms, in which nobody gets a
token. Young ones are looked at a few at a time; what lives longer, after 2.5 million."""
_DRAIN_S: Final = 5
"""How long answers may take to end after SIGTERM; event streams end at once, for their clients to go on elsewhere."""


def serve(*, demo: bool, tell: Callable[[str], None], **given: str | int | None) -> None:
    """Serve until SIGTERM or Ctrl-C. `tell` is given what a person wants to know, the address above all.

    Raises SettingsError, also where the address can't be listened on, and RedisUnusable.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with ExitStack() as stack:
        own: Demo | None = None
        if demo:
            tell("starting a Redis and a worker with the bundled model …")
            own = stack.enter_context(Demo())
            given["redis_url"] = own.redis_url
        settings = GatewaySettings.from_environment(**given)
        _check_redis(settings)
        _allow_files(settings.max_connections)
        app = create_app(settings, own)
        if settings.metrics_port is not None:
            exposition = Exposition(settings.metrics_host, settings.metrics_port)
            exposition.add(GatewayMetrics(app.state.gateway).families)
            stack.callback(exposition.close)
        listener = stack.enter_context(_listener(settings.http_host, settings.http_port))
        host, port = listener.getsockname()[:2]
        tell(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        _run(app, settings, listener)


def _run(app: FastAPI, settings: GatewaySettings, listener: socket.socket) -> None:
    gc.set_threshold(*_GC_THRESHOLDS)
    Server(configuration(app, settings)).run(sockets=[listener])


class Server(uvicorn.Server):
    """uvicorn's, which waits for clients when it stops: those of event streams would stay until the answer's end."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        cast("FastAPI", self.config.app).state.gateway.attachments.cut_off()
        await super().shutdown(sockets)


def configuration(app: FastAPI, settings: GatewaySettings) -> uvicorn.Config:
    """How uvicorn is run: one process, one event loop, our limits."""
    return uvicorn.Config(
        app,
        http=LimitedProtocol.with_limits(
            settings.max_header_bytes, settings.receive_timeout_s, settings.max_connections
        ),
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
    """As many connections as are wanted, where the system's hard limit allows: the usual soft one is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _check_redis(settings: GatewaySettings) -> None:
    """At start, not at the first request: is there a Redis that can be used?"""
    import redis

    with connect(settings.redis_url.get_secret_value()) as client:
        try:
            client.ping()
            check_fit(client.info())
        except redis.exceptions.NoPermissionError:
            return  # INFO isn't to be had; what is asked later says what else is missing
        except redis.RedisError as error:
            raise explain(error, address(client)) from error
