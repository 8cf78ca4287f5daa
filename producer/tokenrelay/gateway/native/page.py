"""The page at `/` with its static files and configuration; `/docs`; the health check; demo mode's kill button."""

import os
import signal
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Query
from starlette.responses import FileResponse, Response

from tokenrelay.gateway.core.dependencies import GatewayDep, TenantDep
from tokenrelay.gateway.core.gateway import Gateway
from tokenrelay.gateway.core.schemas import ERRORS
from tokenrelay.gateway.http.problems import Problem, json_response
from tokenrelay.gateway.records.record import Record
from tokenrelay.gateway.views.raw import RawEncoder
from tokenrelay.producer._core.steps import ask
from tokenrelay.shared.redis.commands import ping

router: Final = APIRouter(tags=["page"])
PAGE: Final = Path(str(files("tokenrelay.gateway") / "page"))
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS: Final = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def index() -> Response:
    """The page."""
    return _file("index.html")


@router.head("/docs", include_in_schema=False)
@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """The reference of the HTTP API, which its script makes from /openapi.json."""
    return _file("docs.html")


@router.get("/static/{name}", include_in_schema=False)
async def static(name: str) -> Response:
    """One of the page's files."""
    return _file(name)


def _file(name: str) -> Response:
    # One flat folder: the route matches no name with a slash, and `..` isn't a file.
    path = PAGE / name
    kind = _TYPES.get(path.suffix)
    if kind is None or not path.is_file():
        raise Problem(404, f"no such file: {name!r}", "not_found")
    return FileResponse(path, headers=dict(_HEADERS), media_type=kind)


@router.get("/config.json")
async def config(gateway: GatewayDep) -> Response:
    """What the page needs before its first request. Needs no API key, so it lists no models if keys are required."""
    models = [] if gateway.tenants.required else list(await gateway.models.served())
    return json_response({"demo": gateway.demo, "models": models, "auth": gateway.tenants.required})


@router.head("/health", include_in_schema=False)
@router.get("/health", responses={503: ERRORS[503]})
async def health(gateway: GatewayDep) -> Response:
    """200 if Redis replies and no background task is failing."""
    for plane in gateway.driver.servers.planes:
        await gateway.driver.run(ask([ping(plane)]))
    if failing := gateway.background.failing:
        tasks = "; ".join(f"{name}: {error}" for name, error in failing.items())
        raise Problem(
            503, f"background tasks failed and are restarting ({tasks}); see the log", "degraded", kind="server_error"
        )
    return json_response({"status": "ok"})


@router.post("/demo/kill-worker", include_in_schema=False)
async def kill_worker(
    gateway: GatewayDep, tenant: TenantDep, request_id: str = "", after: Annotated[int, Query(ge=0)] = 0
) -> Response:
    """Kill the demo's engine, at once or when a request has `after` tokens. Its requests resume on the next engine.

    Process IDs come from worker registrations, in a Redis that only this user can reach.
    """
    if not gateway.demo:
        raise Problem(404, "this gateway has no worker of its own; `tokenrelay serve --demo` starts one", "not_found")
    if request_id:
        await _wait_for_token(gateway, await gateway.record(request_id, tenant), after)
    pids = {pid for model in (await gateway.models.served()).values() for pid in model.pids}
    return json_response({"killed": sum(map(_kill, pids))})


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


async def _wait_for_token(gateway: Gateway, record: Record, token: int) -> None:
    """Wait until the request's stream has that token, or has ended."""
    attachment = await gateway.peek(record)
    feed = attachment.feed
    view = feed.view("raw", RawEncoder)
    try:
        while not feed.over and (feed.last_id is None or feed.last_id.token < token):
            await feed.follow(view, lambda _: False)
    finally:
        attachment.leave()
