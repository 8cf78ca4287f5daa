"""One client's process: asked for one scenario at a time, its calls seen by a tap of its own."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self

from tests.clients.environments import clean_environment
from tests.clients.system import ENDLESS, KEY, MODEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.clients.tap import Call, Tap

QUESTIONS: Final = ("What is the weather today?", "Will it rain tomorrow?", "What is the weather today?")
JSON_QUESTIONS: Final = tuple(
    f"What is the weather in {place}? Answer as JSON." for place in ("Oslo", "Bergen", "Oslo")
)
""""structured" scenarios ask these, for an object with place, weather, degrees and rain."""
DAYS_QUESTION: Final = "What is the weather on each day? Answer as JSON."
"""Of "killed" scenarios: for an object `days` with DAYS of "sun", "rain" and "snow", drawn with SEED."""
DAYS: Final = 200
SEED: Final = 7
_START_S: Final = 120.0
_SCENARIO_S: Final = 90.0
_END_S: Final = 15.0


class ProcessFailed(Exception):
    """The client's process ended or said nothing in time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a scenario came to, and the calls that were seen meanwhile."""

    scenario: str
    answers: Any
    error: str | None
    calls: tuple[Call, ...]


class Session:
    """The process lives for the time of the `with` block."""

    def __init__(self, command: Sequence[str], tap: Tap, variables: dict[str, str]) -> None:
        self._command = command
        self._tap = tap
        self._variables = variables
        self._lines: queue.Queue[str] = queue.Queue()
        self.log = Path(variables["HOME"]) / "stderr.txt"
        self.versions: dict[str, str] = {}
        self.scenarios: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        """Returns once the client has told its version and scenarios. Raises ProcessFailed."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self._variables["HOME"],
                env={**clean_environment(), **self._variables},
                start_new_session=True,
            )
        assert self._process.stdout
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        try:
            hello = self._next(_START_S)
        except ProcessFailed:
            self.__exit__()
            raise
        self.versions, self.scenarios = hello["versions"], tuple(hello["scenarios"])
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run(self, scenario: str) -> Outcome:
        """Have the client run it. Raises ProcessFailed."""
        assert self._process.stdin
        before = len(self._tap.calls)
        try:
            self._process.stdin.write(scenario + "\n")
            self._process.stdin.flush()
        except OSError:
            raise ProcessFailed(self._last_words("ended before")) from None
        said = self._next(_SCENARIO_S)
        calls = tuple(self._tap.calls[before:])
        return Outcome(scenario, said.get("answers"), said.get("error"), calls)

    def _read(self, stdout: IO[str]) -> None:
        for line in stdout:
            self._lines.put(line)
        self._lines.put("")

    def _next(self, timeout_s: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise ProcessFailed(self._last_words(f"said nothing for {timeout_s:.0f} s")) from None
        if not line:
            raise ProcessFailed(self._last_words("ended"))
        said: dict[str, Any] = json.loads(line)
        return said

    def _last_words(self, what: str) -> str:
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        return f"its process {what}: {' | '.join(lines[-3:])[-400:]}"


def told(url: str, environment: Path, home: Path, between: dict[str, str]) -> dict[str, str]:
    """The variables that a recipe reads. A home of its own keeps out the settings of whoever runs this.

    `environment` is where its packages lie, `between` name and version of what stands before the gateway.
    """
    return {
        "CLIENT_FOLDER": str(environment),
        "CLIENT_PROXY": json.dumps(between),
        "CLIENT_BASE_URL": f"{url}/v1",
        "CLIENT_API_KEY": KEY,
        "CLIENT_MODEL": MODEL,
        "CLIENT_ENDLESS_MODEL": ENDLESS,
        "CLIENT_QUESTIONS": json.dumps(QUESTIONS),
        "CLIENT_JSON_QUESTIONS": json.dumps(JSON_QUESTIONS),
        "CLIENT_DAYS_QUESTION": DAYS_QUESTION,
        "CLIENT_DAYS": str(DAYS),
        "CLIENT_SEED": str(SEED),
        "HOME": str(home),
        "DO_NOT_TRACK": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
