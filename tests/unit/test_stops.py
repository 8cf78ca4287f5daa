"""Stop strings in pieces: the same text comes out wherever the pieces were cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenrelay.worker.text import StopMatcher


def expected_text(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    starts = [text.index(string) for string in stop if string in text]
    return (text[: min(starts)], True) if starts else (text, False)


def matched(pieces: list[str], stop: tuple[str, ...]) -> tuple[str, bool]:
    matcher = StopMatcher(stop)
    text = ""
    for piece in pieces:
        release, stopped = matcher.push(piece)
        text += release
        if stopped:
            assert matcher.push("more") == ("", True)
            return text + matcher.flush(), True
    return text + matcher.flush(), matcher.stopped


@given(
    pieces=st.lists(st.text("ab\n", max_size=4), max_size=12),
    stop=st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=3).map(tuple),
)
def test_equals_the_whole_text_cut_at_the_first_stop(pieces: list[str], stop: tuple[str, ...]) -> None:
    assert matched(pieces, stop) == expected_text("".join(pieces), stop)


def test_holds_back_only_what_may_begin_a_stop_string() -> None:
    matcher = StopMatcher(("\n\nUser:", "###"))
    assert matcher.push("Fine.\n") == ("Fine.", False)
    assert matcher.push("\nUs") == ("", False)
    assert matcher.push("ually #") == ("\n\nUsually ", False)
    assert matcher.push("1") == ("#1", False)
    assert matcher.push("\n\nUser") == ("", False)
    assert matcher.push(": hello") == ("", True)
    assert matcher.flush() == ""


def test_a_match_waits_for_a_longer_one_that_began_before_it() -> None:
    matcher = StopMatcher(("abcd", "c"))
    assert matcher.push("xabc") == ("x", False)
    assert matcher.push("d") == ("", True)
    matcher = StopMatcher(("abcd", "c"))
    assert matcher.push("xabc") == ("x", False)
    assert matcher.push("e") == ("ab", True)
    matcher = StopMatcher(("abcd", "c"))
    matcher.push("xabc")
    assert (matcher.flush(), matcher.stopped) == ("ab", True)


@pytest.mark.parametrize("stop", [(), ("",)])
def test_without_stop_strings_everything_is_released_at_once(stop: tuple[str, ...]) -> None:
    assert StopMatcher(stop).push("text") == ("text", False)
