"""Position-keyed sampling as the logits processor of transformers' continuous batching.

Owns the logits processor list that replaces the manager's own. Each request's parameters travel to the
device in the int32 argument rows that the manager copies with every step; nothing is kept on the Python side, which
a CUDA graph would freeze and asynchronous batching would read a step too early.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

from tokenrelay.worker.sampling.params import SamplingParams
from tokenrelay.worker.sampling.sampler import PARAMETER_ROWS, encode_params, is_capturing, sample_scores

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers.generation.continuous_batching.model_runner import ModelRunner
    from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

    Observer = Callable[[str, int, torch.Tensor], None]
    """Called with the request's ID, the index of its token, from 1, and the scores, (vocab,)."""


class PositionKeyedSampler(ContinuousBatchingLogitsProcessorList):
    """A processor list of one entry that uses several argument rows.

    Each request brings `sampling` (SamplingParams) and `prompt_tokens` (the original prompt's length, without what
    earlier attempts emitted) as its processor arguments.
    """

    def __init__(self) -> None:
        super().__init__(LogitsProcessorList())
        self.tensors_required = PARAMETER_ROWS
        self.supported_keys = {"sampling": SamplingParams, "prompt_tokens": int}
        self.do_processing = True
        self.observer: Observer | None = None
        """Receives the scores that each new token is drawn from, at the cost of a copy per row: for the self-test."""
        self._observed: list[tuple[str, int]] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Padding rows are greedy: all bits 0 is temperature 0."""
        int32_tensor.zero_()

    def prepare_tensor_args(
        self, requests_in_batch: list[FutureRequestState], arg_storage: torch.Tensor
    ) -> torch.Tensor:
        """Write the parameters of the rows that get a new token; rows behind them keep what they had.

        A split prefill has a score row and no new token: those rows come last and their draw is dropped.
        """
        drawing = [request.state for request in requests_in_batch if request.has_new_token]
        rows = [_row(state) for state in drawing]
        if self.observer is not None:
            self._observed = [(state.request_id, row[1]) for state, row in zip(drawing, rows, strict=True)]
        if rows:
            arg_storage[:PARAMETER_ROWS, : len(rows)] = encode_params(rows).to(arg_storage.device)
        return arg_storage

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.Tensor, logits_processor_args: torch.Tensor
    ) -> torch.Tensor:
        """(rows, vocab) scores whose argmax is the draw; the manager runs with do_sample off and takes the argmax."""
        if self.observer is not None and not is_capturing(scores):
            for (request_id, position), row in zip(self._observed, scores, strict=False):
                self.observer(request_id, position, row)
        return sample_scores(scores, logits_processor_args)


def _row(state: RequestState) -> tuple[SamplingParams, int]:
    """The request's parameters and the index N of the token that this step draws.

    From the position, which already counts this step's tokens: `generated_tokens` starts again when the scheduler soft
    resets a request, and lags a step behind under asynchronous batching. The manager's own warm-up requests have no
    arguments; their draws are discarded.
    """
    arguments: dict[str, Any] = state.logit_processor_kwargs
    sampling = arguments.get("sampling", _GREEDY)
    return sampling, state.position_offset - arguments.get("prompt_tokens", 0) + 1


_GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=0)


def draw_without_softmax(runner: ModelRunner) -> None:
    """Make the runner take the argmax of the scores and report the largest score instead of the log-probability.

    Both are finite exactly where the row has a token to draw, which is all that is checked. The runner's own
    softmax over the whole vocabulary takes 3 % of a decode step on a CPU.
    """

    def sample(scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        largest, tokens = scores[0].max(dim=-1)
        output_ids[0, : len(tokens)].copy_(tokens)
        output_ids[1, : len(tokens)].copy_(largest.float().view(torch.int32))

    runner._sample = sample  # type: ignore[method-assign]
