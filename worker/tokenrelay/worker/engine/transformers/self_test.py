"""The self-test: whether the engine computes what its model computes, on a few short prompts, before any claim.

Continuous batching hands a model one packed sequence of many requests. A model whose attention doesn't read the paged
cache, whose positions or windows differ there, or that carries state from one token to the next runs without an error
and answers nonsense, or with other users' texts. No list of such models would be complete, so the engine's scores are
compared with the model's own forward pass. Knows neither the manager nor how tokens are drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from tokenrelay.worker.engine.contract import ModelError
from tokenrelay.worker.engine.model_files.one_line import one_line
from tokenrelay.worker.engine.transformers.layers.linear import PackedLinear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

STEPS: Final = 4
"""Tokens drawn for each prompt: the first comes from prefill, the others from decode."""
LENGTHS: Final = (9, 2, 23, 4)
"""Prompts that run together; of different lengths, so that positions, masks and score rows can be mixed up."""
LONG_PRODUCTS: Final = {"cpu": 12_500_000_000}
"""Weights times tokens of a longer prompt: half a second on two cores of a CPU. A number, not a measured time: the same
prompts are compared on a busy machine."""
_DEVICE_PRODUCTS: Final = 5_000_000_000_000
MOST_LONG: Final = 2100
"""Tokens of the longest prompt: plain attention takes memory for its square."""

_BOUNDS: Final = {torch.float64: 2e-5, torch.float32: 2e-4}
"""Rounding comes to a hundredth of them; a softcap that attention left out, to ten times as much."""
_ROUNDING: Final = 4.0
"""How much more than the model's own rounding the engine's may be, in formats of lower precision."""
_LOW_BOUNDS: Final = (0.15, 0.4)
"""The least and the largest bound there; other requests' keys or wrong positions change scores by about 1."""
_MASKED: Final = -1e30
"""Scores below it mask a token, as -inf does."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The engine's tokens for a prompt."""

    token_ids: tuple[int, ...]
    scores: tuple[torch.Tensor | None, ...]
    """(vocab,) of each token, float32, before sampling; None where they can't be read, as in a CUDA graph."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A token whose scores differ from the model's own."""

    prompt_tokens: int
    token: int
    """From 1."""
    error: float
    """Root mean square of the difference, by the spread of the model's own scores."""
    bound: float

    def __str__(self) -> str:
        return (
            f"token {self.token} after a prompt of {self.prompt_tokens} differs from the model's own forward pass by "
            f"{self.error:.2g} of the scores' spread, and {self.bound:.1g} is the bound"
        )


class SelfTest:
    """One model's comparison. `generate` runs prompts together and draws greedily; `plain` gives the model's own scores
    of a whole sequence, (tokens, vocab)."""

    def __init__(
        self,
        model: PreTrainedModel,
        generate: Callable[[Sequence[tuple[int, ...]]], Sequence[Drawn]],
        plain: Callable[[Sequence[int]], torch.Tensor],
        context_tokens: int,
        batch_tokens: int | None,
    ) -> None:
        """batch_tokens: those of one step, where known: a longer prompt is prefilled in pieces."""
        self._model = model
        self._generate = generate
        self._plain = plain
        self._context_tokens = context_tokens
        self._bound = _BOUNDS.get(model.dtype, 0.0)
        self._batch_tokens = batch_tokens or 0

    def run(self) -> None:
        """Raises ModelError with the reason where the engine's scores aren't the model's."""
        ids = ordinary_ids(self._model)
        room = self._context_tokens - STEPS
        prompts = [_prompt(ids, min(length, room), salt) for salt, length in enumerate(LENGTHS) if room > 0]
        self._check(prompts)
        wanted = max(shortest_window(self._model), self._batch_tokens) + max(LENGTHS)
        longest = min(wanted, room, MOST_LONG, self._affordable())
        if longest > max(LENGTHS):
            self._check([_prompt(ids, longest, len(LENGTHS)), prompts[0]])

    def _affordable(self) -> int:
        products = LONG_PRODUCTS.get(self._model.device.type, _DEVICE_PRODUCTS)
        return products // max(count_weights(self._model), 1)

    def _check(self, prompts: Sequence[tuple[int, ...]]) -> None:
        found = self._mismatch(prompts, self._generate(prompts))
        if found is not None:
            raise ModelError(f"{type(self._model).__name__} can't be served: {self._reason(prompts, found)} ({found})")

    def _mismatch(self, prompts: Sequence[tuple[int, ...]], answers: Sequence[Drawn]) -> Mismatch | None:
        """The largest error over its bound."""
        found: list[Mismatch] = []
        for prompt, answer in zip(prompts, answers, strict=True):
            incomplete = len(answer.token_ids) < STEPS
            expected = self._expected(prompt, (*answer.token_ids, 0) if incomplete else answer.token_ids)
            bound = self._bound or self._rounding_bound(prompt, expected)
            if incomplete:  # though the model's own scores are finite
                found.append(Mismatch(len(prompt), len(answer.token_ids) + 1, math.inf, bound))
                continue
            for index, own in enumerate(expected[: len(answer.token_ids)]):
                shown = answer.scores[index]
                error = draw_error(answer.token_ids[index], own) if shown is None else score_error(shown, own)
                if not error <= bound:
                    found.append(Mismatch(len(prompt), index + 1, error, bound))
        return max(found, key=lambda mismatch: mismatch.error, default=None)

    def _expected(self, prompt: tuple[int, ...], token_ids: tuple[int, ...]) -> torch.Tensor:
        """(tokens, vocab): the model's own scores of each token that was drawn, and of one that couldn't be."""
        try:
            scores = self._plain([*prompt, *token_ids[: STEPS - 1]]).float()
        except Exception as error:  # the model's own code, which may raise anything
            raise ModelError(f"{self._named()} fails: {one_line(error)}") from error
        scores = scores[len(prompt) - 1 :]
        if not _sane(scores):
            raise ModelError(
                f"{self._named()} gives NaN or infinite logits in {str(self._model.dtype).removeprefix('torch.')}: "
                "the weights are broken, or need another --dtype, such as bfloat16 or float32"
            )
        return scores

    def _named(self) -> str:
        return f"{type(self._model).__name__} can't be served: its own forward pass"

    def _rounding_bound(self, prompt: tuple[int, ...], expected: torch.Tensor) -> float:
        """Rounding differs with a product's shape. It is measured on the model's own pass over the prompt: in some
        models it is large, for example where a near tie chose other experts."""
        own = score_error(self._plain(prompt).float()[-1], expected[0])
        least, most = _LOW_BOUNDS
        return min(max(least, _ROUNDING * own), most)

    def _reason(self, prompts: Sequence[tuple[int, ...]], found: Mismatch) -> str:
        """The likely cause; running each prompt alone shows whether the others are it."""
        alone = [self._mismatch([prompt], self._generate([prompt])) for prompt in prompts]
        if not any(alone):
            return "requests that run together change each other's scores"
        if all(mismatch is None or mismatch.token > 1 for mismatch in alone):
            return "its attention or its state doesn't go through the engine's KV cache"
        return "the engine's scores aren't the model's"


def score_error(scores: torch.Tensor, own: torch.Tensor) -> float:
    """Root mean square of the difference by the spread of the model's own scores; infinite where one of them masks or
    breaks what the other doesn't. (vocab,) both."""
    scores, own = scores.double(), own.double()
    allowed = (own > _MASKED) & own.isfinite()
    if not torch.equal((scores > _MASKED) & scores.isfinite(), allowed) or not bool(allowed.any()):
        return math.inf
    difference, spread = (scores - own)[allowed], own[allowed] - own[allowed].mean()
    return float(difference.square().mean().sqrt() / spread.square().mean().sqrt().clamp(min=1e-6))


def draw_error(token_id: int, own: torch.Tensor) -> float:
    """How far the drawn token's score is below the best, by the spread of the model's own scores. own: (vocab,)."""
    own = own.double()
    allowed = own[(own > _MASKED) & own.isfinite()]
    spread = (allowed - allowed.mean()).square().mean().sqrt().clamp(min=1e-6)
    return float((allowed.max() - own[token_id]) / spread)


def ordinary_ids(model: PreTrainedModel) -> list[int]:
    """Vocabulary IDs without a special meaning in the model's configuration, such as an image placeholder."""
    config = model.config.get_text_config(decoder=True)
    special: set[int] = set()
    for fields in (model.config.to_dict(), config.to_dict()):
        for name, value in fields.items():
            if name.endswith(("token_id", "token_index", "token_ids")):
                special.update(value if isinstance(value, list) else [value] if isinstance(value, int) else [])
    vocabulary = int(config.vocab_size)
    return [token_id for token_id in range(vocabulary) if token_id not in special] or list(range(vocabulary))


def shortest_window(model: PreTrainedModel) -> int:
    """Tokens that the shortest sliding window or chunk holds; 0 where the model has none."""
    config = model.config.get_text_config(decoder=True)
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=0)


def count_weights(model: torch.nn.Module) -> int:
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    return sum(part.numel() for part in model.parameters()) + sum(
        layer.in_features * layer.out_features for layer in packed
    )


def _prompt(ids: Sequence[int], length: int, salt: int) -> tuple[int, ...]:
    """Token IDs from all over the vocabulary, others for each salt."""
    pace = 7 + 4 * salt
    return tuple(ids[(salt * 31 + index * index * pace + index * 3 + 1) % len(ids)] for index in range(length))


def _sane(scores: torch.Tensor) -> bool:
    """Whether each row has a largest finite score: masked entries may be -inf."""
    broken = scores.isnan() | (scores == math.inf)
    return not bool(broken.any()) and bool(scores.isfinite().any(dim=-1).all())
