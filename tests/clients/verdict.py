"""Whether a scenario passed: judged by the client's result and by the requests on the wire."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from tests.clients.expected import TOP, days_of
from tests.clients.session import JSON_QUESTIONS, QUESTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.clients.catalogue import Client
    from tests.clients.expected import Expected
    from tests.clients.session import Outcome
    from tests.clients.tap import Call

_REFUSED: Final = 400
_ROUNDING: Final = 1e-3
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


def fault_of(client: Client, outcome: Outcome, expected: Expected) -> str:
    """What's wrong with the outcome; empty if nothing is."""
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
    return _fault_of_answers(client, outcome, asked, expected)


def _fault_of_error(pattern: str, outcome: Outcome) -> str:
    if outcome.error is None:
        return f"no error, but {str(outcome.answers)[:80]!r}"
    return "" if re.search(pattern, outcome.error, re.DOTALL) else f"another error: {outcome.error}"


def _fault_of_answers(client: Client, outcome: Outcome, asked: Sequence[Call], expected: Expected) -> str:
    """By the scenario's name: what it's about, and whether it's streamed."""
    scenario = outcome.scenario
    if "structured" in scenario or "killed" in scenario:
        if any(b'"json_schema"' not in call.body for call in asked):
            return "asked without a schema"
        if "killed" in scenario:
            return "" if outcome.answers == days_of(expected) else f"other days: {str(outcome.answers)[:200]}"
        return _fault_of_objects(outcome, asked, expected.objects)
    if "logprobs" in scenario:
        return _fault_of_logprobs(outcome.answers, expected.logprobs)
    if scenario.endswith(("whole", "streamed")):
        answers = list(expected.texts) if client.exact else outcome.answers
        return _fault_of_turns(outcome, asked, QUESTIONS, answers)
    return ""


def _fault_of_objects(outcome: Outcome, asked: Sequence[Call], expected: Sequence[str]) -> str:
    """Each answer is the object, and stands in the history as its JSON."""
    if outcome.answers != [json.loads(each) for each in expected]:
        return f"other answers: {outcome.answers}"
    return _fault_of_turns(replace(outcome, answers=list(expected)), asked, JSON_QUESTIONS, expected)


def _fault_of_logprobs(answers: object, expected: Sequence[tuple[str, float]]) -> str:
    """Each is a token, its log-probability and the number of its alternatives."""
    tokens = answers if isinstance(answers, list) else []
    if [token for token, _, _ in tokens] != [token for token, _ in expected]:
        return f"other tokens: {answers}"
    if any(abs(given - wanted) > _ROUNDING for (_, given, _), (_, wanted) in zip(tokens, expected, strict=True)):
        return f"other log-probabilities: {answers}"
    return "" if all(top == TOP for _, _, top in tokens) else f"other numbers of alternatives: {answers}"


def _fault_of_turns(outcome: Outcome, asked: Sequence[Call], questions: Sequence[str], expected: Sequence[str]) -> str:
    answers = outcome.answers
    if not isinstance(answers, list) or len(answers) != len(questions) or not all(answers):
        return f"no answer per turn: {answers}"
    if list(answers) != list(expected):
        return f"other answers: {answers}"
    if any(bool(call.asked.get("stream")) != outcome.scenario.endswith("streamed") for call in asked):
        return "not asked as a stream" if outcome.scenario.endswith("streamed") else "asked as a stream"
    said = str(asked[-1].asked.get("messages") or asked[-1].asked.get("input"))
    missing = [earlier for earlier in (*questions, *expected[:-1]) if earlier not in said]
    if any(earlier in questions for earlier in missing) or len(missing) > said.count(_REFERENCE):
        return f"the last turn's history lacks earlier ones: {said[:200]}"
    return ""
