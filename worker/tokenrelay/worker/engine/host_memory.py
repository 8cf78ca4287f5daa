"""Memory that is available to this process: the machine's, or its control group's where that is less.

docker compose, Kubernetes and systemd limit memory by control groups. psutil knows the machine's memory, and not these.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

_GROUPS: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")
_V2: Final = ("memory.max", "memory.current", "inactive_file")
_V1: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def free_host_bytes(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Bytes that this process may still allocate. The parameters are Linux's files of control groups."""
    left = [int(psutil.virtual_memory().available)]
    for folder, names in _memory_groups(groups, membership):
        try:
            limit, used = (int((folder / name).read_text()) for name in names[:2])
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group here, or no limit: "max"
            continue
        # Cached pages of files, weights included, are reclaimed under memory pressure.
        left.append(max(limit - used + int(statistics.get(names[2], 0)), 0))
    return min(left)


def _memory_groups(groups: Path, membership: Path) -> Iterable[tuple[Path, tuple[str, str, str]]]:
    """The process's control group and all above it: each may have a limit. A container sees its own as the root."""
    try:
        lines = membership.read_text().splitlines()
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
