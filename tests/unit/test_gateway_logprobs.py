"""Log-probabilities in OpenAI's shapes."""

from __future__ import annotations

from tokenrelay.gateway.views.logprobs import completion_logprobs
from tokenrelay.shared.wire.entries import Token, TokenLogprob


def test_completions_have_the_likeliest_first() -> None:
    """The drawn one in its place, once; parts of characters, which have one text, by their bytes."""
    drawn = TokenLogprob(3, -2.0, b"\xe4")
    likeliest = (
        TokenLogprob(1, -0.5, b" a"),
        TokenLogprob(2, -1.0, b"\xe5"),
        drawn,
        TokenLogprob(4, -3.0, b"z"),
    )
    shown = completion_logprobs([Token(1, "", 3, 0, (drawn, *likeliest))], 0)
    assert shown is not None
    named = [(" a", -0.5), (r"bytes:\xe5", -1.0), (r"bytes:\xe4", -2.0), ("z", -3.0)]
    assert [list(each.items()) for each in shown["top_logprobs"]] == [named]
    assert shown["token_logprobs"] == [-2.0]
