"""Scripts of a scripted worker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenrelay.shared.options import Limits, Submission, validate
from tokenrelay.shared.store.requests import TerminalEvent
from tokenrelay.shared.wire.entries import State
from tokenrelay.testing.script import Script, answers, fails, pieces, stalls

COMPLETED = TerminalEvent(State.COMPLETED, "stop")
LIMITS = Limits(max_prompt_chars=1000, max_new_tokens=1000)


def request(max_new_tokens: int = 100, stop: tuple[str, ...] = ()) -> Submission:
    return validate({"prompt": "x", "max_new_tokens": max_new_tokens, "stop": list(stop)}, LIMITS)


def test_a_text_is_cut_by_words_and_tokens_stay_as_they_are() -> None:
    assert answers("It is sunny.").tokens == ("It", " is", " sunny", ".")
    assert answers("It is", " sunny.", "").tokens == ("It is", " sunny.", "")
    assert answers().tokens == ()


@given(st.text())
def test_no_character_is_lost(text: str) -> None:
    assert "".join(pieces(text)) == text


def test_ends() -> None:
    assert answers("a", held="b").end == TerminalEvent(State.COMPLETED, "stop", "b")
    assert fails("c", "m", after="It is") == Script(
        ("It", " is"), TerminalEvent(State.FAILED, "error", code="c", message="m")
    )
    assert stalls(after="It") == Script(("It",), None)


def test_methods_give_changed_copies() -> None:
    plain = answers("It")
    changed = plain.paced(0.1).delayed(2).migrating(1).migrating(1, crashed=True)
    assert plain == answers("It")
    assert (changed.pause_s, changed.wait_s) == (0.1, 2)
    assert [(over.after, over.crashed) for over in changed.hand_backs] == [(1, False), (1, True)]


@pytest.mark.parametrize(
    ("stop", "tokens"),
    [
        ((" sunny",), ("It", " is", "")),
        (("is s",), ("It", " ")),
        (("It",), ("",)),
        ((".", "sun"), ("It", " is", " ")),
        (("rain",), ("It", " is", " sunny", ".")),
    ],
)
def test_a_stop_string_cuts(stop: tuple[str, ...], tokens: tuple[str, ...]) -> None:
    script = answers("It is sunny.").within(request(stop=stop))
    assert (script.tokens, script.end) == (tokens, COMPLETED)


def test_the_budget_cuts() -> None:
    assert answers("It is sunny.").within(request(2)).end == TerminalEvent(State.INCOMPLETE, "length")
    assert answers("It is sunny.").within(request(2)).tokens == ("It", " is")
    assert fails(after="It is").within(request(2)) == fails(after="It is")
    assert stalls(after="It is").within(request(1)).end == TerminalEvent(State.INCOMPLETE, "length")
