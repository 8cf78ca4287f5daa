"""A prompt's log-probabilities on their way from the engine into Redis: before the first token, once, not too many."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tokenrelay.shared import options
from tokenrelay.shared.request_fields import MAX_PROMPT_LOGPROBS_BYTES
from tokenrelay.shared.store.jobs import Execution
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.core.attempts import TOO_LARGE, Attempt, Ending, Work, engine_request
from tokenrelay.worker.core.publisher import publication
from tokenrelay.worker.engine.contract import EngineOutput
from tokenrelay.worker.models import weather_model_path
from tokenrelay.worker.text import EndRules, TokenText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_LOGPROBS = (((5, -1.5), (7, -0.25)), ((6, float("-inf")), (7, -0.25)))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(weather_model_path())
    return found


def attempt(tokenizer: PreTrainedTokenizerBase, written: int = 1) -> Attempt:
    text = TokenText(tokenizer, EndRules(), lambda token_id: b"x" * written)
    return Attempt(Execution("request", "queue"), "1:x", 1, 60, text=text)


def output(*token_ids: int, **more: Any) -> EngineOutput:
    return EngineOutput("1:x", token_ids, more.pop("finish_reason", None), **more)


def sent(each: Attempt) -> str:
    return publication(each, 6000).script.name


def test_they_are_sent_before_the_first_token_and_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    for finish_reason, then in ((None, "append"), ("stop", "finish")):
        each = attempt(tokenizer)
        each.receive(output(20, finish_reason=finish_reason, prompt_logprobs=PROMPT_LOGPROBS))
        assert sent(each) == "score"
        assert each.prompt_logprobs is not None
        assert json.loads(each.prompt_logprobs) == [
            None,
            [[5, -1.5, "eA=="], [7, -0.25, "eA=="]],
            [[6, -9999, "eA=="], [7, -0.25, "eA=="]],
        ]
        each.scored = True
        assert sent(each) == then


def test_a_request_that_fails_or_is_overdue_needs_them_no_more(tokenizer: PreTrainedTokenizerBase) -> None:
    for ending, call in (
        (Ending.internal_error(), "finish"),
        (Ending(State.INCOMPLETE, "deadline"), "expire"),
    ):
        each = attempt(tokenizer)
        each.receive(output(prompt_logprobs=PROMPT_LOGPROBS))
        each.ending = ending
        assert sent(each) == call


def test_more_bytes_than_a_hash_takes_end_the_request_before_its_first_token(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    each = attempt(tokenizer, written=MAX_PROMPT_LOGPROBS_BYTES // 5)
    each.receive(output(20, prompt_logprobs=PROMPT_LOGPROBS))
    assert (each.ending, each.tokens) == (TOO_LARGE, [])
    assert TOO_LARGE.code == "prompt_logprobs_too_large"
    assert sent(each) == "finish"


def test_an_engine_is_asked_for_them_where_no_token_is_written_yet(tokenizer: PreTrainedTokenizerBase) -> None:
    """Whoever finds a token finds them in the hash."""
    given = options.validate(
        {"prompt": "x", "prompt_logprobs": 3, "max_new_tokens": 5, "seed": 1}, options.Limits(100, 100)
    )
    work = Work(options.filled(given), (1, 2, 3), 5)
    each = attempt(tokenizer)
    assert engine_request(each, work).prompt_logprobs == 3
    each.tokens.append(("x", 20))
    assert engine_request(each, work).prompt_logprobs is None
