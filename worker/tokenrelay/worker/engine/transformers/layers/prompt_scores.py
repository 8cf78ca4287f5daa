"""Log-probabilities of prompts' tokens, from the step that prefills them.

The manager has the model compute the scores of each request's last position alone. Here those of a prompt's other
positions are computed from the hidden states of the same forward pass, a bounded number at a time. Knows no requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from tokenrelay.worker.sampling.logprobs import raw_logprobs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel
    from transformers.generation.continuous_batching.cache import PagedAttentionCache
    from transformers.modeling_outputs import BaseModelOutput

    from tokenrelay.worker.sampling.logprobs import Logprobs

_MOST_SCORES: Final = 1 << 24
"""Scores that are computed at once: 64 MiB in float32."""


@dataclass(frozen=True, slots=True)
class PromptPart:
    """Consecutive positions of one prompt within a step's packed sequence, from row `first_row` on."""

    first_row: int
    next_ids: Sequence[int]
    """For each position, the token that follows it."""
    top: int
    report: Callable[[int, Logprobs], None]
    """Called with the place in `next_ids` and that token's log-probabilities."""


def can_score_prompts(model: PreTrainedModel) -> bool:
    """Whether the model has a decoder of its own behind its scores."""
    return model.base_model is not model


def score_prompts(
    forward: Callable[..., None], parts: Sequence[PromptPart], model: PreTrainedModel, *arguments: object
) -> None:
    """Run a step's forward pass, `forward(model, *arguments)`, and report the log-probabilities of the parts."""
    seen: list[BaseModelOutput] = []
    hook = model.base_model.register_forward_hook(lambda _module, _arguments, output: seen.append(output))
    try:
        forward(model, *arguments)
    finally:
        hook.remove()
    hidden = seen[0].last_hidden_state
    assert hidden is not None
    rows = max(1, _MOST_SCORES // int(model.config.get_text_config().vocab_size))
    for part in parts:
        for begin in range(0, len(part.next_ids), rows):
            next_ids = part.next_ids[begin : begin + rows]
            first = part.first_row + begin
            scores = _scores(model, seen[0], hidden[:, first : first + len(next_ids)])
            for place, raw in enumerate(raw_logprobs(scores, range(len(next_ids)), part.top)):
                part.report(begin + place, raw.ranked(next_ids[place], part.top))


def _scores(model: PreTrainedModel, output: BaseModelOutput, hidden: torch.Tensor) -> torch.Tensor:
    """The model's scores for some of its decoder's hidden states. hidden: (1, rows, width). Returns (rows, vocab).

    By the model's own forward pass, whose decoder gives these: models scale or cap what the last layer computes.
    """
    given = type(output)(**{**output, "last_hidden_state": hidden})
    decoder = model.base_model
    decoder.forward = lambda *_, **__: given
    try:
        with torch.no_grad():
            input_ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
            scores: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits[0]
    finally:
        del decoder.forward
    return scores


def compute_whole_prompts(cache: PagedAttentionCache, scores_prompt: Callable[[str], bool]) -> None:
    """Make the cache give no request a prefix of another's whose prompt is to be scored: no hidden states are computed
    for a prefix that is shared. `scores_prompt` takes a request's ID."""
    search = cache.search_prefix_match

    def search_prefix_match(request_id: str, prompt_ids: list[int]) -> int:
        return 0 if scores_prompt(request_id) else search(request_id, prompt_ids)

    cache.search_prefix_match = search_prefix_match  # type: ignore[method-assign]
