"""What a model's generation_config.json asks for: defaults of a request that says nothing, and what isn't done here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tokenrelay.shared.options import sampling_defaults

if TYPE_CHECKING:
    from transformers import GenerationConfig

_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "temperature": (1.0,),
    "top_k": (0,),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "length_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "guidance_scale": (1.0,),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "bad_words_ids": ([],),
    "stop_strings": ([], ""),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "sequence_bias": ([], {}),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
}
"""The fields that change which tokens come, and the values at which they change nothing."""


def request_defaults(config: GenerationConfig | None) -> dict[str, Any]:
    """What holds where a request says nothing, by the names of our options.

    As vLLM takes it: whether the file also says `do_sample` makes no difference. A value out of its bounds is none.
    """
    return sampling_defaults(_asked(config))


def ignored_fields(config: GenerationConfig | None) -> dict[str, Any]:
    """The other fields that would change answers, with their values."""
    applied = request_defaults(config)
    return {name: value for name, value in _asked(config).items() if name not in applied}


def _asked(config: GenerationConfig | None) -> dict[str, Any]:
    given = {} if config is None else config.to_dict()
    return {
        name: given[name]
        for name, neutral in sorted(_NEUTRAL.items())
        if given.get(name) is not None and given[name] not in neutral
    }
