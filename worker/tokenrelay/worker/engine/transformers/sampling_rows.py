"""Position-keyed sampling as the logits processor of transformers' continuous batching.

Owns the logits processor list that replaces the manager's own. Each request's seed, position, temperature and filters
travel to the device in the int32 argument rows that the manager copies with every step: Python's side would be frozen
by a CUDA graph. Options that need the request's tokens (see `Row`) can't travel so: a step with such a request runs
without a graph, and its rows are made while it runs, when the token of the step before is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

from tokenrelay.shared.errors import EngineError
from tokenrelay.worker.engine.contract import EngineOutput
from tokenrelay.worker.engine.transformers.layers.prompt_scores import PromptPart, score_prompts
from tokenrelay.worker.sampling.adjustments import adjust
from tokenrelay.worker.sampling.logprobs import raw_logprobs
from tokenrelay.worker.sampling.params import SamplingParams
from tokenrelay.worker.sampling.row import Row
from tokenrelay.worker.sampling.sampler import PARAMETER_ROWS, encode_params, is_capturing, sample_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    from transformers.generation.continuous_batching.model_runner import ModelRunner
    from transformers.generation.continuous_batching.requests import FutureRequestState, RequestState

    from tokenrelay.worker.engine.contract import EngineRequest, FinishReason, RequestFailure
    from tokenrelay.worker.sampling.logprobs import Logprobs, RawLogprobs

    Observer = Callable[[str, int, torch.Tensor], None]
    """Called with the request's ID, the index of its token, from 1, and the scores, (vocab,)."""


@dataclass(slots=True)
class LiveRequest:
    """A request that is in the manager, which hands it to the sampler with each of its rows."""

    request: EngineRequest
    end_ids: frozenset[int]
    """Tokens that end it."""
    delivered: int = 0
    """Tokens of this attempt that the worker has."""
    raw: dict[int, RawLogprobs] = field(default_factory=dict)
    """By index of a drawn token that isn't delivered."""
    prompt: dict[int, Logprobs] = field(default_factory=dict)
    """By index of a prompt token, from 0, what is reported of it; until the first output."""
    dead_end: bool = False
    """Whether its options left no token to draw, so that its row isn't the model's fault."""

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Itself: the manager copies a request's arguments when it puts the request back into its queue."""
        return self

    def keeps(self, end_id: int) -> bool:
        """Whether this token, which ended the request, is emitted."""
        return end_id in self.request.kept_end_ids

    @property
    def scores_prompt(self) -> bool:
        """Whether its prompt's log-probabilities are still to be reported."""
        return self.request.prompt_logprobs is not None and not self.delivered

    def output(
        self, token_ids: tuple[int, ...], finish_reason: FinishReason | None, error: RequestFailure | None = None
    ) -> EngineOutput:
        """Its next tokens, which count as delivered."""
        logprobs, prompt = self._logprobs(token_ids), self._prompt_logprobs()
        self.delivered += len(token_ids)
        return EngineOutput(self.request.engine_id, token_ids, finish_reason, error, logprobs, prompt)

    def _prompt_logprobs(self) -> tuple[Logprobs, ...] | None:
        """Those of the prompt's tokens but the first, with the first output."""
        if not self.scores_prompt:
            return None
        found, self.prompt = self.prompt, {}
        return tuple(found[index] for index in range(1, len(self.request.prompt_ids)))

    def _logprobs(self, token_ids: Sequence[int]) -> tuple[Logprobs, ...]:
        """Those of the next tokens to be delivered; none where the request doesn't ask."""
        top, first = self.request.top_logprobs, len(self.request.emitted_ids) + self.delivered + 1
        if top is None:
            return ()
        return tuple(self.raw.pop(first + place).ranked(token_id, top) for place, token_id in enumerate(token_ids))

    @property
    def adjusts(self) -> bool:
        return self.request.token_mask is not None or self.request.sampling.adjusts


class PositionKeyedSampler(ContinuousBatchingLogitsProcessorList):
    """A processor list of one entry that uses several argument rows.

    Each request brings itself as its processor argument `live`.
    """

    def __init__(self) -> None:
        super().__init__(LogitsProcessorList())
        self.tensors_required = PARAMETER_ROWS
        self.supported_keys = {"live": LiveRequest}
        self.do_processing = True
        self.observer: Observer | None = None
        """Receives the scores that each new token is drawn from, at the cost of a copy per row: for the self-test."""
        self._observed: list[tuple[str, int]] = []
        self._adjusting: dict[int, tuple[RequestState, int]] = {}
        """By row, the requests whose raw scores this step changes, and the index of their token. The manager computes a
        batch right after it has prepared it."""
        self._reporting: dict[int, tuple[LiveRequest, int]] = {}
        """The same of the requests that ask for log-probabilities."""
        self.prompt_parts: Sequence[PromptPart] = ()
        """What the batch that was prepared last prefills of prompts that are to be scored."""

    @property
    def is_adjusting(self) -> bool:
        """Whether the batch that was prepared last needs more than the argument rows."""
        return bool(self._adjusting or self._reporting)

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
        rows = [_parameters(state) for state in drawing]
        if self.observer is not None:
            self._observed = [(state.request_id, row[1]) for state, row in zip(drawing, rows, strict=True)]
        self._adjusting = {
            index: (state, rows[index][1])
            for index, state in enumerate(drawing)
            if (live := live_request(state)) is not None and live.adjusts
        }
        self._reporting = {
            index: (live, rows[index][1])
            for index, state in enumerate(drawing)
            if (live := live_request(state)) is not None and live.request.top_logprobs is not None
        }
        self.prompt_parts = tuple(_prompt_parts(requests_in_batch))
        if rows:
            arg_storage[:PARAMETER_ROWS, : len(rows)] = encode_params(rows).to(arg_storage.device)
        return arg_storage

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.Tensor, logits_processor_args: torch.Tensor
    ) -> torch.Tensor:
        """(rows, vocab) scores whose argmax is the draw; the manager runs with do_sample off and takes the argmax.

        input_ids: (rows,), the last token before each draw.
        """
        if self.observer is not None and not is_capturing(scores):
            for (request_id, position), row in zip(self._observed, scores, strict=False):
                self.observer(request_id, position, row)
        if self._reporting and not is_capturing(scores):
            top = max(live.request.top_logprobs or 0 for live, _ in self._reporting.values())
            raw = raw_logprobs(scores, list(self._reporting), top)
            for (live, position), row in zip(self._reporting.values(), raw, strict=True):
                live.raw[position] = row
        if self._adjusting and not is_capturing(scores):
            self._adjust(input_ids, scores)
        return sample_scores(scores, logits_processor_args)

    def _adjust(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> None:
        """In place: this step's scores are read by nobody else."""
        rows = {index: _row(state, position, input_ids[index]) for index, (state, position) in self._adjusting.items()}
        adjust(scores, rows)
        for index, row in rows.items():
            if row.masks and float(scores[index].max()) == -torch.inf:
                live = live_request(self._adjusting[index][0])
                assert live is not None
                live.dead_end = True


def live_request(state: RequestState) -> LiveRequest | None:
    """None for the manager's own warm-up requests, whose draws are discarded."""
    live: LiveRequest | None = state.logit_processor_kwargs.get("live")
    return live


def _prompt_parts(requests_in_batch: Sequence[FutureRequestState]) -> Iterator[PromptPart]:
    """The parts of prompts in a step, whose positions count this step's tokens already."""
    row = 0
    for request in requests_in_batch:
        live = live_request(request.state)
        if live is not None and live.scores_prompt:
            end = request.state.position_offset
            begin, prompt_ids = end - request.query_length, live.request.prompt_ids
            next_ids = prompt_ids[begin + 1 : end + 1]
            if next_ids:
                report = partial(_report, live.prompt, begin + 1)
                yield PromptPart(row, next_ids, live.request.prompt_logprobs or 0, report)
        row += request.query_length


def _report(found: dict[int, Logprobs], first: int, place: int, logprobs: Logprobs) -> None:
    found[first + place] = logprobs


def _parameters(state: RequestState) -> tuple[SamplingParams, int]:
    """The request's parameters and the index N of the token that this step draws.

    From the position, which already counts this step's tokens: `generated_tokens` starts again when the scheduler soft
    resets a request, and lags a step behind under asynchronous batching.
    """
    live = live_request(state)
    if live is None:
        return _GREEDY, state.position_offset + 1
    return live.request.sampling, state.position_offset - len(live.request.prompt_ids) + 1


def _row(state: RequestState, position: int, last_id: torch.Tensor) -> Row:
    """What the draw of token `position` depends on. `last_id`: the token before it.

    A soft reset moves generated tokens to the initial ones, which hold prompt and earlier attempts' tokens from the
    start. Under asynchronous batching the state lacks the token of the step before; only the device has it, as this
    step's input, and reading it waits for that step.
    """
    live = live_request(state)
    assert live is not None
    prompt_ids = live.request.prompt_ids
    emitted_ids = [*state.initial_tokens[len(prompt_ids) :], *state.generated_tokens]
    if len(emitted_ids) == position - 2:
        emitted_ids.append(int(last_id))
    if len(emitted_ids) != position - 1:
        raise EngineError(f"token {position} was to be drawn after {len(emitted_ids)} tokens")
    mask = None if live.request.token_mask is None else live.request.token_mask(emitted_ids)
    return Row(live.request.sampling, prompt_ids, emitted_ids, live.end_ids, mask)


_GREEDY = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=0)


def adjust_without_graph(runner: ModelRunner, sampler: PositionKeyedSampler) -> None:
    """Make the runner compute a batch eagerly where the sampler adjusts scores, or prompts are scored: a CUDA graph, or
    a compiled step, would leave that out. Other batches are computed as before."""
    choose = runner._get_forward_fn

    def get_forward_fn(use_block_table: bool) -> tuple[Callable[..., None], bool]:
        if sampler.prompt_parts:
            return partial(score_prompts, runner._forward_process_and_sample, sampler.prompt_parts), False
        return (runner._forward_process_and_sample, False) if sampler.is_adjusting else choose(use_block_table)

    runner._get_forward_fn = get_forward_fn  # type: ignore[method-assign]


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
