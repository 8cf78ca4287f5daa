"""The ASGI application: routes, middleware, exception handlers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from tokenrelay.gateway.core.gateway import Gateway
from tokenrelay.gateway.http.guards import PathNormalizer, RequestCounter, ShutdownGuard, SizeGuard
from tokenrelay.gateway.http.origins import HostGuard, OriginGuard, origins_of
from tokenrelay.gateway.http.problems import (
    Problem,
    framework_problem,
    problem_of,
    problem_response,
    validation_problem,
)
from tokenrelay.gateway.native import page as routes_page
from tokenrelay.gateway.native import requests as routes_requests
from tokenrelay.gateway.openai import completions as routes_completions
from tokenrelay.gateway.openai import model_list as routes_models
from tokenrelay.gateway.openai import responses as routes_responses
from tokenrelay.gateway.openai.bodies import ignored
from tokenrelay.shared.errors import RedisUnusable, TokenRelayError
from tokenrelay.shared.redis.connections import explain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

    from tokenrelay.shared.settings import GatewaySettings

_ROUTERS: Final = (
    routes_requests.router,
    routes_completions.router,
    routes_responses.router,
    routes_models.router,
    routes_page.router,
)


def create_app(settings: GatewaySettings, *, demo: bool = False) -> FastAPI:
    """The gateway as an application, for any ASGI server with one event loop. Raises SettingsError.

    `demo`: its Redis and worker are its own, so a visitor of the page may kill the worker's engine.
    """
    gateway = Gateway(settings, demo=demo)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = FastAPI(
        title="tokenrelay",
        version=version("tokenrelay"),
        summary="Durable, resumable token streams; OpenAI-compatible.",
        docs_url=None,  # FastAPI's pages load their scripts from a CDN: native/page.py has one of ours
        redoc_url=None,
        lifespan=running,
        middleware=[Middleware(RequestCounter, gateway.counters.http_requests), *_middleware(gateway)],
    )
    app.state.gateway = gateway
    for router in _ROUTERS:
        app.include_router(router)
    for kind in (TokenRelayError, RedisError, Problem, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer)
    return app


def _middleware(gateway: Gateway) -> list[Middleware]:
    settings = gateway.settings
    origins = origins_of(settings.cors_origins)
    guards = [
        Middleware(PathNormalizer),
        Middleware(ShutdownGuard),
        Middleware(OriginGuard, origins),
        Middleware(SizeGuard, settings.max_header_bytes, settings.max_body_bytes, settings.receive_timeout_s),
    ]
    if origins:
        exposed = ["X-Request-Id", "Location", "Retry-After", ignored.HEADER]
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=exposed,
        )
        guards.insert(0, cors)
    if not gateway.tenants.required:
        guards.insert(0, Middleware(HostGuard, (settings.http_host, *origins_of(settings.allowed_hosts))))
    return guards


async def _answer(request: Request, error: Exception) -> Response:
    """Answer an exception in OpenAI's shape. For a bug, the server logs the traceback besides."""
    gateway: Gateway = request.app.state.gateway
    if isinstance(error, RedisError):  # which no driver has translated
        error = explain(error, gateway.driver.servers.address)
    match error:
        case Problem():
            problem = error
        case TokenRelayError():
            problem = problem_of(error)
        case RequestValidationError():
            problem = validation_problem(error.errors(), error.body, request.headers.get("content-type"))
        case HTTPException():
            problem = framework_problem(error, request)
        case _:
            problem = Problem(500, "internal error; see the log", "internal_error", kind="server_error")
    if isinstance(error, RedisUnusable):
        gateway.counters.redis_errors.add("answer")
    if problem.status == 429:
        gateway.counters.refused.add(problem.code)
    return problem_response(problem)
