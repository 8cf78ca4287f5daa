"""A TCP proxy that drops selected data between a client and Redis, or a replica and its primary."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Literal

Mode = Literal["pass", "drop", "drop-replies", "hold"]


class Proxy:
    """Listens on 127.0.0.1:`port` and forwards to `upstream`, a port that may change at any time.

    Modes: `pass`; `drop` cuts all connections and every new one; `drop-replies` lets Redis do what it's asked, and cuts
    the connection instead of giving its answer; `hold` forwards nothing and keeps the connections.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.dropped_replies = 0
        self.connections = 0
        """How many were ever made."""
        self._mode: Mode = "pass"
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def switch(self, mode: Mode) -> None:
        """Change the mode, and have it in force before this returns."""

        async def apply() -> None:
            self._mode = mode
            if mode == "hold":
                self._flowing.clear()
            else:
                self._flowing.set()
            if mode == "drop":
                for writer in self._writers:
                    writer.close()

        asyncio.run_coroutine_threadsafe(apply(), self._loop).result(10)

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            await asyncio.sleep(0)  # a task that is cancelled before its first step would leave its socket open
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        self.connections += 1
        try:
            if self._mode == "drop":
                return
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
            writers.append(up_writer)
            self._writers.update(writers)
            pumps = [
                asyncio.ensure_future(self._pump(reader, up_writer, replies=False)),
                asyncio.ensure_future(self._pump(up_reader, writer, replies=True)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
        except OSError:
            return  # Redis isn't there: the client sees its connection closed
        finally:
            self._writers.difference_update(writers)
            for each in writers:
                each.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await self._flowing.wait()
                if replies and self._mode == "drop-replies":
                    self.dropped_replies += 1
                    return
                writer.write(data)
                await writer.drain()
