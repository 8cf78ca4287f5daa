"""The error tree is the one that errors.py draws."""

from __future__ import annotations

import inspect
import re

from tokenrelay.shared import errors
from tokenrelay.shared.wire.answer import Answer, Timings
from tokenrelay.shared.wire.entries import State, Usage


def drawn_tree() -> dict[str, str]:
    """Class → parent, as the docstring draws it."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"^    ([│├└─ ]*)([A-Z]\w+)", line):
            depth = len(found[1]) // 4
            path[depth:] = [found[2]]
            parents[found[2]] = path[depth - 1] if depth else "Exception"
    return parents


def real_tree() -> dict[str, str]:
    classes = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
    return {error.__name__: error.__bases__[0].__name__ for error in classes}


def test_the_tree_is_as_drawn() -> None:
    assert drawn_tree() == real_tree()


def test_every_error_carries_a_request_id() -> None:
    assert errors.StreamGap("gone", request_id="r").request_id == "r"
    assert errors.EngineError("dying").request_id is None
    assert errors.QueueFull("full", queue="q", depth=1, limit=1, retry_after_s=1.0).request_id is None
    assert errors.RequestError("bad", field="top_p", limit=1).code == "invalid_request"


def test_generation_errors_carry_the_partial_text() -> None:
    answer = Answer(
        request_id="r",
        state=State.FAILED,
        text="It is",
        finish_reason="error",
        usage=Usage(1, 2),
        tokens=(),
        attempts=1,
        timings=Timings(),
        code="poison_request",
    )
    error = errors.GenerationFailed("died", answer=answer)
    assert (error.text, error.code, error.request_id) == ("It is", "poison_request", "r")
