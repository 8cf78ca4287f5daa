"""An earlier release beside today's code: its tree comes from git, into an environment of its own.

The dependencies are those of the environment that runs the tests; only tokenrelay itself is the earlier one.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

ROOT: Final = Path(__file__).parents[2]
COMMIT: Final = "0aac985"
"""The last one before wire version 2 was written down."""
PORTIONS: Final = ("producer", "worker", "shared")
GONE: Final = ("TOKENRELAY_", "PYTHONPATH")


@dataclass(frozen=True, slots=True)
class Release:
    """An interpreter that imports one release of tokenrelay, and where its processes run."""

    name: str
    python: str
    folder: Path
    cli: str
    """The module of its command `tokenrelay`."""

    def start(self, module: str, *arguments: str, **environment: str) -> Process:
        """`python -m MODULE ARGUMENTS` as a process of its own session; output goes to a log in the folder."""
        return Process(self, module, arguments, environment)

    def output(self, code: str, given: str = "") -> str:
        """What a Python program prints there. Raises CalledProcessError."""
        command = [self.python, "-c", code]
        done = subprocess.run(command, cwd=self.folder, input=given, capture_output=True, text=True, check=True)
        return done.stdout


class Process:
    """A running process of a release; killed, with all that it started, where the block is left."""

    def __init__(self, release: Release, module: str, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(GONE)}
        self._log = (release.folder / f"{module}-{os.urandom(4).hex()}.log").open("w+b")
        self._popen = subprocess.Popen(
            [release.python, "-m", module, *arguments],
            cwd=release.folder,
            env={**kept, "HF_HUB_OFFLINE": "1", **environment},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text("utf-8", "replace")

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def terminate(self) -> int:
        """SIGTERM to the process; its exit code."""
        self._popen.terminate()
        return self._popen.wait(timeout=60)

    def kill(self) -> None:
        """SIGKILL to the process. Whatever it started has sessions of its own, and ends with it."""
        if self.running:
            os.kill(self._popen.pid, signal.SIGKILL)
        self._popen.wait(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if error is not None:
            sys.stderr.write(self.log)
        self._log.close()


def today(folder: Path) -> Release:
    """The checkout that the tests run on."""
    folder.mkdir()
    return Release("today", sys.executable, folder, "tokenrelay.cli")


def earlier(folder: Path) -> Release:
    """The release of COMMIT, installed into `folder`. Raises CalledProcessError where git doesn't have it."""
    archive = ["git", "-C", str(ROOT), "archive", COMMIT, *PORTIONS]
    tree = subprocess.run(archive, capture_output=True, check=True).stdout
    venv.create(folder / "venv", symlinks=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    with tarfile.open(fileobj=io.BytesIO(tree)) as files:
        files.extractall(folder / "tree", filter="data")
    for portion in PORTIONS:
        shutil.copytree(folder / "tree" / portion / "tokenrelay", site / "tokenrelay", dirs_exist_ok=True)
    paths: list[Any] = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in paths), "utf-8")
    return Release(COMMIT, str(folder / "venv" / "bin" / "python"), folder, "tokenrelay.producer.cli")
