"""Decisions by a request's state name every state, so that mypy lists them all when one is added."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tokenrelay.cli.ops.listing import ListState
from tokenrelay.producer._core.endings import answer_or_raise
from tokenrelay.shared.errors import GenerationCancelled, GenerationError, GenerationExpired, GenerationFailed
from tokenrelay.shared.wire.answer import Answer, Timings
from tokenrelay.shared.wire.entries import State, Usage
from tokenrelay.shared.wire.transitions import NOTHING, TRANSITIONS

ROOT = Path(__file__).parents[2]
SOURCES = [file for tree in ("shared", "producer", "worker") for file in sorted((ROOT / tree).rglob("*.py"))]
EXEMPT = {"transitions.py"}
"""The state machine itself, whose table a test compares with the states."""
ENDS: dict[State, type[GenerationError] | None] = {
    State.COMPLETED: None,
    State.INCOMPLETE: None,
    State.FAILED: GenerationFailed,
    State.CANCELLED: GenerationCancelled,
    State.EXPIRED: GenerationExpired,
}


def answer(state: State) -> Answer:
    return Answer("a" * 22, state, "", "stop", Usage(1, 0), tokens=(), attempts=1, timings=Timings())


@pytest.mark.parametrize("state", [state for state in State if state.terminal])
def test_only_an_answer_is_returned_as_one(state: State) -> None:
    error = ENDS[state]
    assert state.is_answer is (error is None)
    if error is None:
        assert answer_or_raise(answer(state)).state is state
        return
    with pytest.raises(error):
        answer_or_raise(answer(state))


@pytest.mark.parametrize("state", [State.QUEUED, State.IN_PROGRESS])
def test_a_request_that_has_not_ended_is_no_answer(state: State) -> None:
    assert not state.is_answer
    with pytest.raises(ValueError, match="hasn't ended"):
        answer_or_raise(answer(state))


def test_requests_can_be_listed_by_every_end() -> None:
    assert {str(state) for state in State if state.terminal} <= {str(each) for each in ListState}


def is_state(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "State"


def names_states(node: ast.AST) -> bool:
    return any(is_state(each) for each in ast.walk(node))


def is_exhaustive(match: ast.Match) -> bool:
    last = match.cases[-1]
    return ast.unparse(last.pattern) == "_" and ast.unparse(last.body[-1]).startswith("assert_never(")


def partial_decisions(tree: ast.AST) -> list[int]:
    """Lines of what decides by states, and would do something unintended with a new one."""
    found: list[int] = []
    for node in ast.walk(tree):
        match node:
            case ast.Match(cases=cases):
                if any(names_states(case.pattern) for case in cases) and not is_exhaustive(node):
                    found.append(node.lineno)
            case ast.Dict(keys=keys):
                found += [node.lineno] if any(is_state(key) for key in keys) else []
            case ast.Compare(ops=[ast.In() | ast.NotIn()], comparators=[within]):
                found += [node.lineno] if names_states(within) else []
    return found


def test_decisions_name_every_state() -> None:
    found = {str(file): partial_decisions(ast.parse(file.read_text("utf-8"))) for file in SOURCES}
    terminal = found.pop(str(ROOT / "shared/tokenrelay/shared/wire/entries.py"))
    assert len(terminal) == 1, "State.terminal alone, for which every new state is terminal"
    assert {file: lines for file, lines in found.items() if lines and Path(file).name not in EXEMPT} == {}


@pytest.mark.parametrize(
    "code",
    [
        "match state:\n    case State.FAILED:\n        pass",
        "match state:\n    case State.FAILED:\n        pass\n    case _:\n        pass",
        "match entry:\n    case Ended(state=State.FAILED):\n        pass",
        "{State.FAILED: 1}.get(state)",
        "state not in (State.FAILED, State.EXPIRED)",
    ],
)
def test_a_partial_decision_is_found(code: str) -> None:
    assert partial_decisions(ast.parse(code)) == [1]


def test_the_state_machine_has_every_state() -> None:
    assert set(TRANSITIONS) == {NOTHING, *State}
