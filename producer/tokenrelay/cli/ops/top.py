"""`tokenrelay top`: the system live in the terminal, one frame into a pipe, or one JSON object for scripts.

It only reads. A Redis that goes away meanwhile is said so, over the last figures, and looked for again.
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

from tokenrelay.cli.ops.diagnosis import diagnosed
from tokenrelay.cli.ops.frame import frame
from tokenrelay.cli.ops.snapshot import as_json, snapshot
from tokenrelay.cli.output import print_rich, write_json
from tokenrelay.producer._core.rounds import Driver
from tokenrelay.shared.errors import RedisUnusable, SettingsError
from tokenrelay.shared.redis.connections import address

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis
    from rich.console import Group

    from tokenrelay.cli.ops.snapshot import Snapshot

LEAST_INTERVAL_S: Final = 0.1
MOST_INTERVAL_S: Final = 3600.0


def check_interval(interval_s: float) -> None:
    """Raises SettingsError for one that would be no use, or no rest."""
    if not LEAST_INTERVAL_S <= interval_s <= MOST_INTERVAL_S:
        bounds = f"give {LEAST_INTERVAL_S:g} to {MOST_INTERVAL_S:g} seconds"
        raise SettingsError(f"--interval: {interval_s:g} is out of bounds; {bounds}")


def write_once(client: redis.Redis, *, json: bool) -> None:
    """One frame, or one JSON object. Raises RedisUnusable."""
    shot = Driver(client).run(snapshot())
    findings = diagnosed(shot.system, shot.running)
    if json:
        write_json({**as_json(shot), "findings": [asdict(finding) for finding in findings]})
        return
    shown = frame(shot, findings, where=address(client))
    print_rich(lambda console: console.print(shown))


def watch(client: redis.Redis, interval_s: float) -> None:
    """Frames until `q` or Ctrl-C. Raises RedisUnusable where not even the first one can be read."""
    driver, where = Driver(client), address(client)
    shot, trouble = driver.run(snapshot()), ""
    console = Console(highlight=False, emoji=False, markup=False)

    def drawn() -> Group:
        return frame(
            shot, diagnosed(shot.system, shot.running), where=where, lines=console.size.height - 1, trouble=trouble
        )

    live = Live(drawn(), console=console, screen=True, auto_refresh=False)
    with _keys() as keyboard:
        try:
            # Within `try`: a signal that comes while it takes the screen must give it back too.
            live.start(refresh=True)
            due = time.monotonic() + interval_s
            while (key := keyboard.pressed(due - time.monotonic())) not in ("q", "Q", "\x03"):
                if time.monotonic() >= due:
                    shot, trouble = refreshed(driver, shot)
                    due = time.monotonic() + interval_s
                elif key not in ("", " "):
                    continue
                live.update(drawn(), refresh=True)
        finally:
            live.stop()


def refreshed(driver: Driver, last: Snapshot) -> tuple[Snapshot, str]:
    """A new snapshot, or the last one and why there is none."""
    try:
        return driver.run(snapshot()), ""
    except RedisUnusable as error:
        return last, error.message


class _Keyboard:
    """What is typed, a key at a time; a resized window wakes it too, as a key of no name."""

    def __init__(self, typed: int, resized: int) -> None:
        self._typed = typed
        self._resized = resized

    def pressed(self, timeout_s: float) -> str:
        """The next key. Empty once the time is over, or the window was resized."""
        ready, _, _ = select.select([self._typed, self._resized], [], [], max(timeout_s, 0.0))
        if self._resized in ready:
            os.read(self._resized, 4096)
        if self._typed not in ready:
            return ""
        return os.read(self._typed, 1).decode("latin-1") or "q"  # the terminal is gone


@contextmanager
def _keys() -> Iterator[_Keyboard]:
    """The keyboard without echo and line by line, and the terminal as it was afterwards."""
    import termios
    import tty

    typed = sys.stdin.fileno()
    before = termios.tcgetattr(typed)
    resized, note = os.pipe()
    os.set_blocking(note, False)
    before_top = {
        signal.SIGWINCH: signal.signal(signal.SIGWINCH, lambda *_: _noted(note)),
        signal.SIGTERM: signal.signal(signal.SIGTERM, _ended),  # the terminal is to be left as it was
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


def _ended(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _noted(note: int) -> None:
    try:
        os.write(note, b"w")
    except BlockingIOError:  # it has been told often enough
        pass
