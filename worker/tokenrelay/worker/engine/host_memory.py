"""How much memory this process may still take on its host: the machine's, or its control group's where that is less.

docker compose, Kubernetes and systemd limit memory by control groups, of which the machine's own figures know nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_GROUPS: Final = Path("/sys/fs/cgroup")
_PROC: Final = Path("/proc")
_V2: Final = ("memory.max", "memory.current", "inactive_file")
_V1: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_host_bytes(groups: Path = _GROUPS, proc: Path = _PROC) -> int:
    """Memory that this process may still take. `groups` and `proc` are where the kernel shows what it knows."""
    left = [_free_of_machine(proc)]
    for folder, names in _memory_groups(groups, proc):
        try:
            limit, used = (int((folder / name).read_text()) for name in names[:2])
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group here, or no limit: "max"
            continue
        # Pages of files, the weights' among them, are given back when memory is needed.
        left.append(max(limit - used + int(statistics.get(names[2], 0)), 0))
    return min(left)


def _memory_groups(groups: Path, proc: Path) -> Iterable[tuple[Path, tuple[str, str, str]]]:
    """The process's control group and all above it: each may have a limit. A container sees its own as the root."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, names = groups, _V2
        elif "memory" in controllers.split(","):
            root, names = groups / "memory", _V1
        else:
            continue
        group = root / path.lstrip("/")
        yield from ((folder, names) for folder in (group, *group.parents) if folder.is_relative_to(root))


def _free_of_machine(proc: Path) -> int:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        # No Linux: half of what there is.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    sizes = {name: size for name, _, size in (line.partition(":") for line in lines)}
    return int(sizes["MemAvailable"].split()[0]) * 1024
