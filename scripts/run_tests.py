"""Runs the tests in groups side by side: `make test`. Most of them wait, for processes, leases and deadlines.

Each group is a separate pytest process with its own Redis. With arguments, which go to pytest, it's one process.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT: Final = Path(__file__).parent.parent
GROUPS: Final = {"gateway": ("gateway", "browser"), "integration": ("integration",)}
"""The slowest folders of tests/; all others are the group `rest`."""
PARTS: Final = {"integration": 2}
"""Number of processes that share a group's files."""
PYTEST: Final = (sys.executable, "-m", "pytest", "-m", "not slow")
_FAILED: Final = 1
_NO_TESTS: Final = 5
_COUNT: Final = re.compile(r"(\d+) (passed|failed|skipped|errors?)\b")


class Session:
    """One group's pytest process. Its output is forwarded line by line, prefixed with the group's name."""

    def __init__(self, name: str, files: Sequence[str], root: Path) -> None:
        self.name = name
        self.counts: dict[str, int] = {}
        self.process = subprocess.Popen(
            [*PYTEST, "-q", *files],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
        )
        self._reader = threading.Thread(target=self._pass_on)
        self._reader.start()

    def _pass_on(self) -> None:
        last = ""
        with self.process.stdout or nullcontext(()) as lines:
            for line in lines:
                sys.stdout.write(f"{self.name:>13} | {line}")
                sys.stdout.flush()
                last = line if line.strip() else last
        self.counts = {kind.rstrip("s") if "error" in kind else kind: int(n) for n, kind in _COUNT.findall(last)}

    def wait(self) -> int:
        """The process's exit code, or the number of the signal that ended it."""
        code = abs(self.process.wait())
        self._reader.join()
        return code


def files_of_sessions(root: Path = ROOT) -> dict[str, tuple[str, ...]]:
    """Session name → its test files. Together they are all test files."""
    group_of = {folder: group for group, folders in GROUPS.items() for folder in folders}
    files: dict[str, list[str]] = {}
    for file in sorted((root / "tests").rglob("test_*.py")):
        path = file.relative_to(root)
        files.setdefault(group_of.get(path.parts[1], "rest"), []).append(str(path))
    return {
        f"{group} {part + 1}" if PARTS.get(group, 1) > 1 else group: tuple(found[part :: PARTS.get(group, 1)])
        for group, found in sorted(files.items())
        for part in range(min(PARTS.get(group, 1), len(found)))  # pytest without files would run all
    }


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    """pytest's exit code; the worst one of several sessions."""
    if arguments:
        return subprocess.run([*PYTEST, *arguments], cwd=root, check=False).returncode
    began = time.monotonic()
    sessions = [Session(name, files, root) for name, files in files_of_sessions(root).items()]
    try:
        codes = {session.name: session.wait() for session in sessions}
    except KeyboardInterrupt:
        for session in sessions:
            session.wait()
        return 130
    for name, code in codes.items():
        if code > _FAILED and code != _NO_TESTS:
            sys.stdout.write(f"{name} ended with exit code {code}, so not all of its tests are counted\n")
    total = {kind: sum(session.counts.get(kind, 0) for session in sessions) for kind in ("passed", "failed", "skipped")}
    errors = sum(session.counts.get("error", 0) for session in sessions)
    sys.stdout.write(f"{(time.monotonic() - began) / 60:.1f} minutes\n")
    sys.stdout.write(f"{total['passed']} passed, {total['failed'] + errors} failed, {total['skipped']} skipped\n")
    return worst(codes.values())


def worst(codes: Iterable[int]) -> int:
    """The highest exit code. A session without tests only counts if no session has any."""
    found = list(codes)
    return max((code for code in found if code != _NO_TESTS), default=_NO_TESTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
