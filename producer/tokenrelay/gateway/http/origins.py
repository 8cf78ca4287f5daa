"""Middleware against cross-site requests and DNS rebinding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tokenrelay.gateway.http.problems import Problem, problem_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_UNSAFE: Final = ("POST", "PUT", "PATCH", "DELETE")
_OWN_SITES: Final = (b"same-origin", b"none")
_OTHER_SITES: Final = (b"cross-site", b"same-site")
_SECURITY: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_UNDELEGATED: Final = ("local", "localhost", "internal", "test", "svc", "home.arpa")
"""Suffixes that public DNS doesn't delegate (RFC 6761, RFC 8375, ICANN's .internal), and Kubernetes services."""
_PROBED: Final = "/health"


def origins_of(listed: str) -> tuple[str, ...]:
    """The origins or hosts of a comma-separated setting."""
    return tuple(item.strip() for item in listed.split(",") if item.strip())


class OriginGuard:
    """Refuses cross-origin requests from browsers (403), unless CORS allows the origin. Also adds the security headers.

    A gateway without API keys serves anyone, so any web page could make its visitor's browser send requests. Browsers
    send Sec-Fetch-Site only over HTTPS and to localhost; otherwise Origin is compared with Host.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def securing_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_SECURITY]
            await send(message)

        if scope["method"] in _UNSAFE and self._is_cross_origin(dict(scope["headers"])):
            why = "cross-origin requests are refused; to allow an origin, list it in TOKENRELAY_CORS_ORIGINS"
            await problem_response(Problem(403, why, "origin"))(scope, receive, securing_send)
            return
        await self._app(scope, receive, securing_send)

    def _is_cross_origin(self, headers: dict[bytes, bytes]) -> bool:
        site, origin = headers.get(b"sec-fetch-site", b""), headers.get(b"origin", b"").decode("latin-1")
        if "*" in self._origins or origin in self._origins or site in _OWN_SITES:
            return False
        if site in _OTHER_SITES:
            return True
        return bool(origin) and not _is_same_origin(origin, headers.get(b"host", b"").decode("latin-1"))


def _is_same_origin(origin: str, host: str) -> bool:
    """Whether origin and Host header match. The scheme is ignored: a proxy in front may terminate TLS."""
    try:
        parts = urlsplit(origin)
        asked = urlsplit(f"{parts.scheme}://{host}")
        default = {"http": 80, "https": 443}.get(parts.scheme)
        if not parts.hostname or parts.hostname != asked.hostname:
            return False
        return (parts.port or default) == (asked.port or default)
    except ValueError:
        return False


class HostGuard:
    """Refuses Host headers that public DNS could point at this server (403), against DNS rebinding.

    A page under such a name is same-origin for its browser and could read everything from a gateway without API keys.
    IP addresses and local names are always allowed.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        self._app = app
        self._hosts = tuple(host.lower().rstrip(".") for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != _PROBED:
            for name, value in scope["headers"]:
                if name == b"host" and not self._is_allowed(value.decode("latin-1")):
                    await problem_response(_refusal(value.decode("latin-1")))(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _is_allowed(self, host: str) -> bool:
        name = host_name(host)
        return is_local(name) or any(
            allowed in ("*", name) or (allowed.startswith("*.") and name.endswith(allowed[1:]))
            for allowed in self._hosts
        )


def host_name(host: str) -> str:
    """The name or address in a Host header, without the port."""
    name, colon, port = host.strip().lower().rpartition(":")
    return (name if colon and (port.isdecimal() or not port) else host.strip().lower()).rstrip(".")


def is_local(name: str) -> bool:
    """Whether public DNS can't serve the name: an address, a name without a dot, or an undelegated suffix."""
    if name.startswith("[") or "." not in name or name.endswith(tuple(f".{end}" for end in _UNDELEGATED)):
        return True
    return name.rpartition(".")[2].isdecimal()  # 10.0.0.5: no top-level domain is a number


def _refusal(host: str) -> Problem:
    message = (
        f"without API keys the gateway accepts addresses and local names only, and {ascii(host)[:120]} is neither; "
        "list it in TOKENRELAY_ALLOWED_HOSTS, or set API keys"
    )
    return Problem(403, message, "host")
