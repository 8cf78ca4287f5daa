"""Real Sentinels over a primary and a replica: own ports, own folders, ended by their own process handles."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Final

from redis.exceptions import ConnectionError

from tests.redis_servers import RedisServer, free_port
from tests.waiting import wait_until
from tokenrelay.shared.redis.connections import connect

if TYPE_CHECKING:
    from pathlib import Path

    from redis import Redis

SERVICE: Final = "tokens"
_DOWN_AFTER_MS: Final = 500
_NUMBER: Final = 3
_SYNC: Final = ("--repl-diskless-sync-delay", "0")


class Sentinels:
    """Three Sentinels, of which two must agree, over `primary` and `replica`; `password` is the Redis servers'."""

    def __init__(self, folder: Path, password: str = "") -> None:
        self.password = password
        self.ports = [free_port() for _ in range(_NUMBER)]
        self.processes: list[subprocess.Popen[bytes]] = []
        self.primary, self.replica = (self._server(folder / name) for name in ("primary", "replica"))
        try:
            self._bring_together(folder)
        except BaseException:
            self.close()
            raise

    def _bring_together(self, folder: Path) -> None:
        with self.replica.client() as replica:
            replica.replicaof("127.0.0.1", str(self.primary.port))
            wait_until(lambda: replica.info("replication")["master_link_status"] == "up", 20)
        self.processes += [self._launch(folder / f"sentinel-{port}", port) for port in self.ports]
        wait_until(self._agreed, 30)

    def _server(self, folder: Path) -> RedisServer:
        folder.mkdir()
        own = ("--masterauth", self.password) if self.password else ()
        return RedisServer(folder, *_SYNC, *own, password=self.password)

    def _launch(self, folder: Path, port: int) -> subprocess.Popen[bytes]:
        folder.mkdir()
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {folder}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.primary.port} 2",
            f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER_MS}",
            f"sentinel failover-timeout {SERVICE} 5000",
        ]
        if self.password:
            lines.append(f"sentinel auth-pass {SERVICE} {self.password}")
        configuration = folder / "sentinel.conf"
        configuration.write_text("\n".join(lines) + "\n", "utf-8")
        command = [self.primary.binary, str(configuration), "--sentinel"]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)

    def _agreed(self) -> bool:
        """Whether each Sentinel knows the replica and the other two."""
        return all(
            (state["num-slaves"], state["num-other-sentinels"]) == (1, _NUMBER - 1)
            for state in map(self._state, self.ports)
        )

    def _state(self, port: int) -> dict[str, int]:
        try:
            with connect(f"redis://127.0.0.1:{port}/0", retries=0) as sentinel:
                found: dict[str, int] = sentinel.sentinel_masters().get(SERVICE)
                return found
        except ConnectionError:
            return {"num-slaves": 0, "num-other-sentinels": 0}

    def fail_over(self) -> None:
        """Kill the primary, and wait until all Sentinels name the replica as its successor."""
        self.primary.kill()
        wait_until(lambda: all(self._state(port).get("port") == self.replica.port for port in self.ports), 30)

    @property
    def url(self) -> str:
        userinfo = f":{self.password}@" if self.password else ""
        return f"redis+sentinel://{userinfo}{','.join(f'127.0.0.1:{port}' for port in self.ports)}/{SERVICE}/0"

    def client(self) -> Redis:
        return connect(self.url)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(60)
        self.primary.kill()
        self.replica.kill()
