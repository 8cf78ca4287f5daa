"""Would the suite notice a resume that forgot something? What the rest of a stream becomes without one part of it.

Each is made from the pure parts that a worker resumes with: rows of the draw, masks, the text of an answer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.resumes.measures import engine_request_of, forward, start_of
from tokenrelay.worker.sampling.redraw import redraw

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from tests.resumes.suite import Stream
    from tests.resumes.takeovers import Worker
    from tokenrelay.worker.engine.contract import EngineRequest
    from tokenrelay.worker.sampling.row import Row

HISTORY = ("repetition_penalty", "frequency_penalty", "presence_penalty", "penalties", "bad_words")
GRAMMARS = ("json_schema", "json_object", "regex", "lark")


def forgets(kind: str) -> Callable[[Worker, Stream, int], bool] | None:
    """Whether a stream changes behind a cut where its kind's own state is lost; None for kinds without state."""
    if kind in HISTORY:
        return _forgets_history
    if kind in GRAMMARS:
        return _forgets_grammar
    return {"min_tokens": _forgets_min_tokens, "stop": _forgets_held_text}.get(kind)


def forgets_position(worker: Worker, stream: Stream, cut: int) -> bool:
    """Whether it changes where the noise begins again at position 1."""
    scores, start, request = _draw(worker, stream)
    mask, before, rest = request.token_mask, stream.answer.ids[:cut], stream.answer.ids[cut:]
    resumed_mask = None if mask is None else lambda ids: mask((*before, *ids))
    return redraw(scores[cut:-1], start, rest, resumed_mask) != list(rest)


def _forgets_history(worker: Worker, stream: Stream, cut: int) -> bool:
    """The tokens of earlier attempts count for the position alone: others stand in their places."""
    scores, start, _ = _draw(worker, stream)
    ids = stream.answer.ids
    other = next(each for each in range(scores.shape[1]) if each not in ids)
    return redraw(scores[:-1], start, (*[other] * cut, *ids[cut:]))[cut:] != list(ids[cut:])


def _forgets_grammar(worker: Worker, stream: Stream, cut: int) -> bool:
    """The grammar begins again."""
    scores, start, request = _draw(worker, stream)
    mask, ids = request.token_mask, stream.answer.ids
    assert mask is not None
    return redraw(scores[:-1], start, ids, lambda emitted: mask(emitted[cut:]))[cut:] != list(ids[cut:])


def _forgets_min_tokens(worker: Worker, stream: Stream, cut: int) -> bool:
    """They are counted from the cut on: the end comes later."""
    scores, start, _ = _draw(worker, stream)
    later = replace(start.params, min_tokens=start.params.min_tokens + cut)
    ids = stream.answer.ids
    return redraw(scores, replace(start, params=later), ids)[cut:] != redraw(scores, start, ids)[cut:]


def _forgets_held_text(worker: Worker, stream: Stream, cut: int) -> bool:
    """Nothing is held back at the cut."""
    releases = worker.reader.text(stream.asked.submission).replay(stream.answer.ids[cut:])
    return [release.text for release in releases] != [token[0] for token in stream.answer.tokens[cut:]]


def _draw(worker: Worker, stream: Stream) -> tuple[torch.Tensor, Row, EngineRequest]:
    request = engine_request_of(worker, stream.asked, stream.asked.submission)
    scores = forward(worker.loaded, request.prompt_ids, stream.answer.ids)
    return scores, start_of(request, worker.loaded.eos_token_ids), request
