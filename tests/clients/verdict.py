"""Whether a scenario passed: judged by the client's result and by the requests on the wire."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.clients.session import QUESTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.clients.catalogue import Client
    from tests.clients.session import Outcome
    from tests.clients.tap import Call

_REFUSED: Final = 400
_REFERENCE: Final = "item_reference"
"""What some clients send in place of an answer that the Responses API keeps."""


@dataclass(slots=True)
class Row:
    """One client's results: of each scenario what's wrong with it, or nothing. `skipped` says why there are none."""

    name: str
    versions: dict[str, str] = field(default_factory=dict)
    calls: int = 0
    results: dict[str, str] = field(default_factory=dict)
    skipped: str = ""
    failed: str = ""

    @property
    def red(self) -> bool:
        return bool(self.failed) or any(self.results.values()) or not (self.skipped or self.results)


def fault_of(client: Client, outcome: Outcome, expected: Sequence[str]) -> str:
    """What's wrong with the outcome; empty if nothing is. `expected` are the answers over the turns."""
    pattern = client.expected_error(outcome.scenario)
    asked = [call for call in outcome.calls if call.method == "POST"] or outcome.calls
    if not asked:
        return "the gateway saw no call"
    for call in asked:
        if not re.search(client.agent, call.agent):
            return f"called as {call.agent!r}"
    if pattern is not None:
        return _fault_of_error(pattern, outcome)
    if outcome.error is not None:
        return outcome.error
    refused = [call for call in asked if call.status >= _REFUSED]
    if refused:
        return f"{refused[0].path} was answered {refused[0].status}"
    if outcome.scenario.endswith(("whole", "streamed")):
        answers = list(expected) if client.exact else outcome.answers
        return _fault_of_turns(outcome, asked, answers)
    return ""


def _fault_of_error(pattern: str, outcome: Outcome) -> str:
    if outcome.error is None:
        return f"no error, but {str(outcome.answers)[:80]!r}"
    return "" if re.search(pattern, outcome.error, re.DOTALL) else f"another error: {outcome.error}"


def _fault_of_turns(outcome: Outcome, asked: Sequence[Call], expected: Sequence[str]) -> str:
    answers = outcome.answers
    if not isinstance(answers, list) or len(answers) != len(QUESTIONS) or not all(answers):
        return f"no answer per turn: {answers}"
    if list(answers) != list(expected):
        return f"other answers: {answers}"
    if any(bool(call.asked.get("stream")) != outcome.scenario.endswith("streamed") for call in asked):
        return "not asked as a stream" if outcome.scenario.endswith("streamed") else "asked as a stream"
    said = str(asked[-1].asked.get("messages") or asked[-1].asked.get("input"))
    missing = [earlier for earlier in (*QUESTIONS, *expected[:-1]) if earlier not in said]
    if any(earlier in QUESTIONS for earlier in missing) or len(missing) > said.count(_REFERENCE):
        return f"the last turn's history lacks earlier ones: {said[:200]}"
    return ""
