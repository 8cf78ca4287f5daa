"""`tokenrelay top`: a live view in the terminal, one frame into a pipe, or one JSON object.

Read-only. During a Redis outage it shows the last snapshot with a warning, and retries.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.live import Live

from tokenrelay.cli.ops.diagnosis import diagnose
from tokenrelay.cli.ops.frame import frame
from tokenrelay.cli.ops.snapshot import as_json, read_snapshot
from tokenrelay.cli.terminal.output import print_rich, write_json
from tokenrelay.shared.errors import RedisUnusable, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Group

    from tokenrelay.cli.ops.snapshot import Snapshot
    from tokenrelay.producer._core.drivers import Driver

MIN_INTERVAL_S: Final = 0.1
MAX_INTERVAL_S: Final = 3600.0


def check_interval(interval_s: float) -> None:
    """Raises SettingsError for an interval out of bounds."""
    if not MIN_INTERVAL_S <= interval_s <= MAX_INTERVAL_S:
        bounds = f"give {MIN_INTERVAL_S:g} to {MAX_INTERVAL_S:g} seconds"
        raise SettingsError(f"--interval: {interval_s:g} is out of bounds; {bounds}")


def write_once(driver: Driver, *, json: bool) -> None:
    """Write one frame or one JSON object. Raises RedisUnusable."""
    shot = driver.run(read_snapshot())
    findings = diagnose(shot.system, shot.running)
    if json:
        write_json({**as_json(shot), "findings": [asdict(finding) for finding in findings]})
        return
    shown = frame(shot, findings, where=driver.servers.address)
    print_rich(lambda console: console.print(shown))


def watch(driver: Driver, interval_s: float) -> None:
    """Show frames until `q` or Ctrl-C. Raises RedisUnusable if the first snapshot fails."""
    where = driver.servers.address
    shot, trouble = driver.run(read_snapshot()), ""
    console = Console(highlight=False, emoji=False, markup=False)

    def render() -> Group:
        return frame(
            shot, diagnose(shot.system, shot.running), where=where, lines=console.size.height - 1, trouble=trouble
        )

    live = Live(render(), console=console, screen=True, auto_refresh=False)
    with _keys() as keyboard:
        try:
            # Inside `try`: a signal during start must restore the screen too.
            live.start(refresh=True)
            due = time.monotonic() + interval_s
            while (key := keyboard.read_key(due - time.monotonic())) not in ("q", "Q", "\x03"):
                if time.monotonic() >= due:
                    shot, trouble = refresh(driver, shot)
                    due = time.monotonic() + interval_s
                elif key not in ("", " "):
                    continue
                live.update(render(), refresh=True)
        finally:
            live.stop()


def refresh(driver: Driver, last: Snapshot) -> tuple[Snapshot, str]:
    """A new snapshot, or the last one and the error."""
    try:
        return driver.run(read_snapshot()), ""
    except RedisUnusable as error:
        return last, error.message


class _Keyboard:
    """Reads single keys. A window resize wakes it too."""

    def __init__(self, typed: int, resized: int) -> None:
        self._typed = typed
        self._resized = resized

    def read_key(self, timeout_s: float) -> str:
        """The next key; empty after the timeout or a resize."""
        ready, _, _ = select.select([self._typed, self._resized], [], [], max(timeout_s, 0.0))
        if self._resized in ready:
            os.read(self._resized, 4096)
        if self._typed not in ready:
            return ""
        return os.read(self._typed, 1).decode("latin-1") or "q"  # EOF: the terminal is gone


@contextmanager
def _keys() -> Iterator[_Keyboard]:
    """Context manager: the keyboard without echo and line buffering; restores the terminal afterwards."""
    import termios
    import tty

    typed = sys.stdin.fileno()
    before = termios.tcgetattr(typed)
    resized, note = os.pipe()
    os.set_blocking(note, False)
    before_top = {
        signal.SIGWINCH: signal.signal(signal.SIGWINCH, lambda *_: _wake(note)),
        signal.SIGTERM: signal.signal(signal.SIGTERM, _exit),  # so that the terminal is restored
    }
    try:
        tty.setcbreak(typed)
        yield _Keyboard(typed, resized)
    finally:
        for number, handler in before_top.items():
            signal.signal(number, handler)
        termios.tcsetattr(typed, termios.TCSADRAIN, before)
        os.close(resized)
        os.close(note)


def _exit(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _wake(note: int) -> None:
    try:
        os.write(note, b"w")
    except BlockingIOError:  # the pipe is full: a wake-up is already pending
        pass
