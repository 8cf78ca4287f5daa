"""Broadcast to readers: caught-up ones, slow ones, and servers without direct writes."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.test_guards import answered, connected
from tests.gateway.test_views import RECORD
from tests.streams import raw
from tests.waiting import wait_until
from tokenrelay.gateway.http.chunks import EXTENSION, frame_chunk
from tokenrelay.gateway.streams.attachments import Attachments
from tokenrelay.gateway.streams.counters import GatewayCounters
from tokenrelay.gateway.streams.event_stream import Delivery, EventStream, Source
from tokenrelay.gateway.streams.hub import Hub
from tokenrelay.gateway.views.raw import RawEncoder
from tokenrelay.producer._core.drivers import AsyncDriver
from tokenrelay.shared.redis.connections import connect_async

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from tests.gateway.live import LiveGateway, WakingWriter
    from tokenrelay.gateway.streams.feed import Feed

ENDED: Final = {"state": "completed", "finish_reason": "stop", "text": "", "prompt_tokens": 3, "completion_tokens": 1}
TOKENS: Final = 12


def stream(tokens: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """A whole stream as Redis returns it."""
    entries: list[tuple[str, dict[str, Any]]] = [
        ("0-1", {"event": "queued", "at_us": 1, "wire": 1, "metadata": "{}"}),
        ("0-2", {"event": "started", "at_us": 2, "worker": "w", "attempt": 1, "model": "m", "prompt_tokens": 3}),
        *((f"{index}-0", {"text": f" t{index}", "token": index, "at_us": 3}) for index in range(1, tokens + 1)),
        (f"{tokens}-1", {"event": "completed", "at_us": 4, "recomputed_tokens": 0, **ENDED}),
    ]
    entries[1][1]["seed"] = 1
    return [(entry_id.encode(), raw(fields)) for entry_id, fields in entries]


class Client:
    """The server's side of one ASGI response. Refuses chunks by `turns`; without turns, no direct writes."""

    def __init__(self, turns: list[bool] | None) -> None:
        self.received = b""
        self.ended = False
        self._turns = turns
        self._written = 0
        self.scope: dict[str, Any] = {"type": "http", "method": "GET"}
        if turns is not None:
            self.scope["extensions"] = {EXTENSION: {"write": self.write}}

    def write(self, chunk: bytes) -> bool:
        assert self._turns is not None
        self._written += 1
        if not self._turns or self._turns[self._written % len(self._turns)]:
            size, _, rest = chunk.partition(b"\r\n")
            body = rest[: int(size, 16)]
            assert chunk == frame_chunk(body)
            self.received += body
            return True
        return False

    async def send(self, message: Any) -> None:
        await asyncio.sleep(0)
        if message["type"] == "http.response.body":
            self.received += message["body"]
            self.ended = not message["more_body"]

    async def receive(self) -> Any:
        await asyncio.Event().wait()  # it stays


@st.composite
def readers(draw: st.DrawFn) -> tuple[int, int, list[bool] | None]:
    """When the reader attaches, after how many events, and which chunks it accepts."""
    return draw(st.integers(0, 5)), draw(st.integers(0, 20)), draw(st.none() | st.lists(st.booleans(), max_size=4))


@given(
    cuts=st.lists(st.integers(1, TOKENS + 3), max_size=5).map(sorted),
    drawn=st.lists(readers(), min_size=1, max_size=5),
    turns=st.lists(st.integers(0, 6), min_size=6, max_size=6),
)
def test_every_reader_has_every_byte_once_and_in_order(
    cuts: list[int], drawn: list[tuple[int, int, list[bool] | None]], turns: list[int]
) -> None:
    """For any attach time, position and refusals; `turns`: event loop passes between batches."""
    asyncio.run(_read_all([0, *cuts, TOKENS + 3], drawn, turns))


async def _read_all(cuts: list[int], drawn: list[tuple[int, int, list[bool] | None]], turns: list[int]) -> None:
    hub = Hub(
        AsyncDriver(connect_async("redis://127.0.0.1:1/0")), GatewayCounters()
    )  # which nobody asks: the entries come from here
    attachments = Attachments(hub, AsyncDriver(*hub._driver.servers), 0.0)
    whole, joined = stream(TOKENS), list[tuple[Client, int, asyncio.Task[None]]]()
    first = attachments.attach(RECORD)
    view = first.feed.view("raw", RawEncoder)
    for batch, (start, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
        for comes, behind, refusals in drawn:
            if min(comes, len(cuts) - 2) == batch:
                client, position = Client(refusals), min(behind, len(view.events))
                response = EventStream([Source(attachments.attach(RECORD), view, position)], Delivery({}, 60))
                task = asyncio.create_task(response(client.scope, client.receive, client.send))
                joined.append((client, position, task))
        for _ in range(turns[batch]):
            await asyncio.sleep(0)
        first.feed.receive(whole[max(start - 1, 0) : end])
    async with asyncio.timeout(20):
        await asyncio.gather(*(task for _, _, task in joined))
    assert len(joined) == len(drawn)
    for client, position, _ in joined:
        assert client.ended
        assert client.received == b"".join(view.events[position:])
    assert first.feed.readers == 1


def test_a_reader_that_leaves_is_written_to_no_more() -> None:
    async def leave() -> None:
        hub = Hub(AsyncDriver(connect_async("redis://127.0.0.1:1/0")), GatewayCounters())
        feed: Feed = hub.attach(RECORD)
        view, client, stays = feed.view("raw", RawEncoder), Client([]), Client([])
        following = [asyncio.ensure_future(feed.follow(view, each.write)) for each in (client, stays)]
        await asyncio.sleep(0)
        whole = stream(2)
        feed.receive(whole[:3])
        following[0].cancel()
        feed.receive(whole[2:4])  # before the task that leaves has had its turn
        await asyncio.sleep(0)
        had = client.received
        feed.receive(whole[3:])
        assert await following[1] == len(view.events)
        assert following[0].cancelled()
        assert (client.received, stays.received) == (had, b"".join(view.events))

    asyncio.run(leave())


def follow(stack: ExitStack, gateway: LiveGateway, request_id: str, buffer: int = 0) -> socket.socket:
    """A client that requested the stream; `buffer`: its receive buffer size."""
    host, port = gateway.url.removeprefix("http://").split(":")
    connection = stack.enter_context(socket.socket())
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(20)
    connection.connect((host, int(port)))
    head = f"GET /requests/{request_id}/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def bodies(received: bytes) -> Iterator[bytes]:
    """The chunks of a response's body."""
    _, _, rest = received.partition(b"\r\n\r\n")
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        assert rest[length : length + 2] == b"\r\n"
        if length:
            yield rest[:length]
        rest = rest[length + 2 :]


def test_a_slow_reader_falls_behind_and_catches_up(gateway: LiveGateway, writer: WakingWriter, running: str) -> None:
    """A slow client doesn't delay others, and its unread data isn't buffered besides the feed."""
    text, tokens = "x" * 100_000, 100
    with ExitStack() as stack:
        slow = follow(stack, gateway, running, buffer=4096)
        with gateway.client() as client:
            wait_until(lambda: gateway.readers == 1)
            with client.stream("GET", f"/requests/{running}/events") as quick:
                read = quick.iter_raw()
                everything, most = next(read), 0
                for number in range(tokens):
                    writer.append(running, text)
                    while f"id: {4 + number}-0".encode() not in everything[-2 * len(text) :]:
                        everything += next(read)
                    most = max(most, gateway.unsent)
                writer.finish(running)
                everything += b"".join(read)
        assert len(everything) > tokens * len(text)
        assert 0 < most < 4 * len(text)
        assert b"".join(bodies(answered(slow))) == everything


def test_readers_that_are_cut_off_between_tokens(gateway: LiveGateway, writer: WakingWriter, running: str) -> None:
    with ExitStack() as stack:
        clients = [follow(stack, gateway, running) for _ in range(12)]
        wait_until(lambda: gateway.readers == len(clients))
        for number, client in enumerate(clients):
            writer.append(running, f" t{number}")
            if number % 2:  # with a reset, not an orderly close
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
        wait_until(lambda: gateway.readers == len(clients) // 2)
        writer.finish(running)
        left = [b"".join(bodies(answered(client))) for client in clients[::2]]
        assert len(set(left)) == 1
        assert left[0].count(b"event: token\n") == 3 + len(clients)
    wait_until(lambda: gateway.readers == 0)


def test_a_request_behind_a_stream_waits_for_its_end(
    gateway: LiveGateway, http: httpx.Client, writer: WakingWriter, running: str
) -> None:
    """Two pipelined requests on one connection: chunks of the first are never written into the second's response."""
    with connected(gateway) as connection:
        asked = f"GET /requests/{running}/events HTTP/1.1\r\nHost: x\r\n\r\n"
        connection.sendall(f"{asked}GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        wait_until(lambda: gateway.readers == 1)
        writer.append(running, " and")
        writer.finish(running)
        stream_part, _, health = answered(connection).partition(b"\r\n0\r\n\r\n")
    assert stream_part.count(b"event: token\n") == 4
    assert health.startswith(b"HTTP/1.1 200 ")
    assert http.get(f"/requests/{running}").json()["state"] == "completed"
