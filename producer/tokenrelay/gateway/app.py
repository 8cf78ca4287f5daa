"""The ASGI application: routes, guards, and how errors are answered."""

from __future__ import annotations

from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from tokenrelay.gateway import (
    ignored,
    routes_completions,
    routes_models,
    routes_page,
    routes_requests,
    routes_responses,
)
from tokenrelay.gateway.counting import RequestCount
from tokenrelay.gateway.gateway import Gateway
from tokenrelay.gateway.guards import OriginGuard, SizeGuard
from tokenrelay.gateway.problems import Problem, invalid, problem_of
from tokenrelay.gateway.responses import problem_response
from tokenrelay.shared.errors import RedisUnusable, TokenRelayError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

    from tokenrelay.gateway.demo import Demo
    from tokenrelay.shared.settings import GatewaySettings

_ROUTERS: Final = (
    routes_requests.router,
    routes_completions.router,
    routes_responses.router,
    routes_models.router,
    routes_page.router,
)
_KINDS: Final = {404: "not_found", 405: "method_not_allowed"}


def create_app(settings: GatewaySettings, demo: Demo | None = None) -> FastAPI:
    """The gateway as an application, for any ASGI server with one event loop. Raises SettingsError."""
    gateway = Gateway(settings, demo)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = FastAPI(
        title="tokenrelay",
        version=version("tokenrelay"),
        summary="Durable, resumable token streams; OpenAI-compatible.",
        docs_url=None,  # these pages load from a CDN
        redoc_url=None,
        lifespan=running,
        middleware=[Middleware(RequestCount, gateway.figures.http_requests), *_middleware(settings)],
    )
    app.state.gateway = gateway
    for router in _ROUTERS:
        app.include_router(router)
    app.add_exception_handler(TokenRelayError, _answer_error)
    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    return app


def _middleware(settings: GatewaySettings) -> list[Middleware]:
    origins = tuple(origin.strip() for origin in settings.cors_origins.split(",") if origin.strip())
    guards = [
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
    return guards


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, RedisUnusable):
        request.app.state.gateway.figures.redis_errors.add("answer")
    return await _answer_problem(request, problem_of(cast("TokenRelayError", error)))


async def _answer_problem(request: Request, error: Exception) -> Response:
    problem = cast("Problem", error)
    if problem.status == 429:
        request.app.state.gateway.figures.refused.add(problem.code)
    return problem_response(problem)


async def _answer_invalid(request: Request, error: Exception) -> Response:
    refused = cast("RequestValidationError", error)
    return problem_response(invalid(refused.errors(), refused.body, request.headers.get("content-type")))


async def _answer_http(_: Request, error: Exception) -> Response:
    """What the framework itself refuses: no such route, a method that isn't, a body that isn't JSON."""
    refused = cast("HTTPException", error)
    code = _KINDS.get(refused.status_code, "invalid_request")
    return problem_response(
        Problem(refused.status_code, str(refused.detail), code, headers=dict(refused.headers or {}))
    )
