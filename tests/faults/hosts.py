"""Hosts on one machine: network namespaces, each with a link to this machine's own network that can be taken down."""

from __future__ import annotations

import os
import shutil
import subprocess
from itertools import count
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

_NETWORK: Final = "198.18"
"""Reserved for benchmarks of network devices (RFC 2544)."""
_NUMBERS = count(os.getpid() % 20_000)


class Host:
    """A network namespace. `here` is this machine's address on the link, the only one that the host can reach."""

    def __init__(self) -> None:
        number = next(_NUMBERS)
        self.name = f"trelay{number}"
        self._link, self._inner = f"trl{number}", f"tri{number}"
        high, low = divmod(number % 16_384, 64)
        prefix = f"{_NETWORK}.{high}"
        self.here, self.there = f"{prefix}.{low * 4 + 1}", f"{prefix}.{low * 4 + 2}"

    def __enter__(self) -> Self:
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", self._link, "type", "veth", "peer", "name", self._inner, "netns", self.name)
            _ip("address", "add", f"{self.here}/30", "dev", self._link)
            _ip("link", "set", self._link, "up")
            for command in (
                ("address", "add", f"{self.there}/30", "dev", self._inner),
                ("link", "set", self._inner, "up"),
                ("link", "set", "lo", "up"),
            ):
                _ip("-n", self.name, *command)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _ip("netns", "del", self.name)  # its end of the link goes with it, and with that ours

    def command(self, *arguments: str) -> list[str]:
        """What runs `arguments` on the host."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def cut_off(self) -> None:
        """Drop its packets from now on, without closing any connection."""
        _ip("-n", self.name, "link", "set", self._inner, "down")

    def reconnect(self) -> None:
        _ip("-n", self.name, "link", "set", self._inner, "up")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def missing() -> str | None:
    """Why there can be no hosts here."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        return "network namespaces need root, and iproute2"
    try:
        with Host():
            return None
    except RuntimeError as error:
        return str(error)
