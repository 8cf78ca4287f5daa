"""Resuming: a claim stands where the earlier attempts stopped, text included."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tokenrelay.shared import effective
from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.options import filled
from tokenrelay.shared.wire.entries import State
from tokenrelay.worker.core.attempts import Ending, Work
from tokenrelay.worker.sampling.grammar.matcher import AnswerMask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenrelay.shared.options import Submission
    from tokenrelay.shared.store.replies import Granted
    from tokenrelay.shared.store.requests import WrittenToken
    from tokenrelay.worker.core.attempts import Claimed
    from tokenrelay.worker.sampling.grammar.matcher import CompiledGrammar
    from tokenrelay.worker.serving.prompts import PromptReader
    from tokenrelay.worker.text import TokenText


def resumed(
    claimed: Claimed, granted: Granted, reader: PromptReader, options: Submission, grammar: CompiledGrammar | None
) -> Claimed:
    """The claim with its work, or with the ending that its emitted tokens had come to. Raises RequestError."""
    prompt_ids = reader.stored_ids(granted.prompt_ids)
    emitted = emitted_tokens(granted, reader)
    decided = effective.parse(granted.effective) if granted.effective else None
    options = effective.obeying(options, decided) if decided else filled(options)
    budget = reader.budget(len(prompt_ids), len(emitted), options)
    text = reader.text(options)
    ending = resume(text, emitted, budget)
    if ending:
        return replace(claimed, text=text, emitted=emitted, ending=ending)
    mask = AnswerMask(grammar) if grammar else None
    if mask:
        mask([token[1] for token in emitted])  # here, and not within a step, which all neighbours would wait for
    work = Work(options, prompt_ids, budget, reader.bad_words(options), mask)
    return replace(claimed, text=text, emitted=emitted, work=work)


def emitted_tokens(granted: Granted, reader: PromptReader) -> tuple[WrittenToken, ...]:
    """What earlier attempts emitted. Raises RequestError `continuation_mismatch`."""
    emitted = granted.emitted
    try:
        pairs = tuple((piece.decode(), int(token)) for token, piece in zip(emitted[::2], emitted[1::2], strict=True))
    except ValueError as error:
        raise RequestError(f"the stream can't be read: {error}", code="continuation_mismatch") from error
    if not reader.in_vocabulary([token for _, token in pairs]):
        raise RequestError("the stream holds tokens that aren't this model's", code="continuation_mismatch")
    if not granted.logprobs:
        return pairs
    if len(granted.logprobs) != len(pairs):
        raise RequestError("the stream lacks tokens' logprobs", code="continuation_mismatch")
    return tuple((*pair, logprobs) for pair, logprobs in zip(pairs, granted.logprobs, strict=True))


def resume(text: TokenText, emitted: Sequence[WrittenToken], budget: int) -> Ending | None:
    """Replay the emitted tokens into `text`. The ending, where they had already come to it."""
    if not emitted:
        return None
    releases = text.replay(token[1] for token in emitted)
    if [release.text for release in releases] != [token[0] for token in emitted]:
        return Ending.failure("continuation_mismatch", "the emitted tokens' text can't be rebuilt")
    if releases[-1].stopped:
        return Ending(State.COMPLETED, "stop")
    return Ending.natural(text, "length") if len(emitted) >= budget else None
