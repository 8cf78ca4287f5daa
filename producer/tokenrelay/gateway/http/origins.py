"""Who a browser asks for: pages of other origins, and names that an attacker's DNS can point here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tokenrelay.gateway.http.problems import Problem
from tokenrelay.gateway.http.replies import problem_response

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
"""Ends of names that public DNS doesn't have (RFC 6761 and 8375, ICANN's .internal), and Kubernetes' services."""
_PROBED: Final = "/health"


def origins_of(listed: str) -> tuple[str, ...]:
    """The setting's origins or hosts, which commas separate."""
    return tuple(item.strip() for item in listed.split(",") if item.strip())


class OriginGuard:
    """Refuses what a browser sends for a page of another origin (403), unless CORS allows that origin.

    Without keys the gateway does what anybody asks, and a web page could make its visitor's browser ask. Browsers say
    by Sec-Fetch-Site who asks, but not over plain HTTP: there Origin is compared with Host. Adds the headers that every
    answer has.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_SECURITY]
            await send(message)

        if scope["method"] in _UNSAFE and self._is_foreign(dict(scope["headers"])):
            told_why = "pages of other origins may not do this; to allow one, list it in TOKENRELAY_CORS_ORIGINS"
            await problem_response(Problem(403, told_why, "origin"))(scope, receive, told)
            return
        await self._app(scope, receive, told)

    def _is_foreign(self, headers: dict[bytes, bytes]) -> bool:
        site, origin = headers.get(b"sec-fetch-site", b""), headers.get(b"origin", b"").decode("latin-1")
        if "*" in self._origins or origin in self._origins or site in _OWN_SITES:
            return False
        if site in _OTHER_SITES:
            return True
        return bool(origin) and not _is_same(origin, headers.get(b"host", b"").decode("latin-1"))


def _is_same(origin: str, host: str) -> bool:
    """Whether a page of that origin came from that host. Not the scheme: a proxy in front may speak TLS."""
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
    """Refuses names that anybody's DNS may point here (403): a page under such a name is of the same origin for its
    browser, and could read all that a gateway without keys tells. Addresses and names of the own network can't be.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        self._app = app
        self._hosts = tuple(host.lower().rstrip(".") for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != _PROBED:
            for name, value in scope["headers"]:
                if name == b"host" and not self._is_allowed(value.decode("latin-1")):
                    await problem_response(_refused(value.decode("latin-1")))(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _is_allowed(self, host: str) -> bool:
        name = name_of(host)
        return is_own(name) or any(
            allowed in ("*", name) or (allowed.startswith("*.") and name.endswith(allowed[1:]))
            for allowed in self._hosts
        )


def name_of(host: str) -> str:
    """The Host header's name or address, without the port."""
    name, colon, port = host.strip().lower().rpartition(":")
    return (name if colon and (port.isdecimal() or not port) else host.strip().lower()).rstrip(".")


def is_own(name: str) -> bool:
    """Whether the name can't be another's: an address, a name without a dot, or one that public DNS doesn't have."""
    if name.startswith("[") or "." not in name or name.endswith(tuple(f".{end}" for end in _UNDELEGATED)):
        return True
    return name.rpartition(".")[2].isdecimal()  # 10.0.0.5: no top-level domain is a number


def _refused(host: str) -> Problem:
    told = (
        f"without API keys this gateway answers to addresses and local names only, and {ascii(host)[:120]} is neither; "
        "list it in TOKENRELAY_ALLOWED_HOSTS, or set API keys"
    )
    return Problem(403, told, "host")
