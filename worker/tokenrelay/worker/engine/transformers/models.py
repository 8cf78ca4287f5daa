"""Loading a model: weights, tokenizer, context and fingerprint, from a folder or a Hub name.

Owns the errors about configurations and weights. Knows nothing of batching or the KV cache.
"""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from tokenrelay.worker.engine.contract import ModelError
from tokenrelay.worker.engine.model_files.fingerprint import fingerprint_folder
from tokenrelay.worker.engine.model_files.folder import check_folder, find_folder
from tokenrelay.worker.engine.model_files.generation_defaults import ignored_fields
from tokenrelay.worker.engine.model_files.one_line import one_line, shorten
from tokenrelay.worker.engine.model_files.tokenizer import load_tokenizer
from tokenrelay.worker.engine.transformers.device import choose_device, choose_dtype
from tokenrelay.worker.engine.transformers.layers.linear import pack_linears
from tokenrelay.worker.engine.transformers.layers.rope import stable_length

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
_UNLIMITED = 1 << 20  # a model that names no limit, such as ALiBi's: its cache is the limit


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model on its device, ready for an engine."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    context_tokens: int
    eos_token_ids: frozenset[int]
    fingerprint: str  # equal for workers that may continue each other's requests


def load_model(
    name_or_folder: str | Path, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
) -> LoadedModel:
    """Load a causal LM and its tokenizer from a folder, or by its Hub name from the Hub or its local cache.

    safetensors only: other weights are pickles. On a CPU linear layers are packed for its matrix products. Raises
    ModelError saying what is missing.
    """
    target = choose_device(device)
    number_format = choose_dtype(dtype, target)
    folder = find_folder(name_or_folder, trust_remote_code=trust_remote_code)
    check_folder(folder)
    with _quiet():
        config = _load_config(folder, trust_remote_code)
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        model = _load_weights(folder, config, target, number_format, trust_remote_code)
    _check_vocabulary(model, tokenizer)
    ignored = ignored_fields(model.generation_config)
    if ignored:
        shown = ", ".join(f"{name}={value!r}" for name, value in ignored.items())
        log.warning("unsupported fields of the model's generation_config.json: %s", shorten(shown))
    pack_linears(model)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        device=target,
        dtype=number_format,
        context_tokens=_context_tokens(model),
        eos_token_ids=_eos_token_ids(model, tokenizer),
        fingerprint=fingerprint_folder(folder, str(number_format)),
    )


def _load_config(folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    """Loaded before the tokenizer, which reads it too, but whose errors don't name it. Raises ModelError."""
    path = folder / "config.json"
    try:
        if not isinstance(json.loads(path.read_text("utf-8")), dict):
            raise ModelError(f"{path} isn't a JSON object")
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except ModelError:
        raise
    except Exception as error:  # each configuration's own code, which may raise anything
        raise ModelError(f"{path} isn't right: {one_line(error)}") from error
    if not isinstance(config, PreTrainedConfig):
        raise ModelError(f"{path} isn't right: it gives a {type(config).__name__}")
    return config


def _load_weights(
    folder: Path, config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, trust_remote_code: bool
) -> PreTrainedModel:
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # _check_weights names them
        )
        model, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)
        torch.nn.Module.to(model, device)  # in place; the model's own `to` is wrapped and loses its types
    except Exception as error:  # each configuration's and model's own code, which may raise anything
        raise ModelError(f"{folder} can't be loaded as a causal language model: {one_line(error)}") from error
    _check_weights(folder, info)
    return model


def _check_weights(folder: Path, info: dict[str, Any]) -> None:
    """Raises ModelError for missing or misshapen tensors, which transformers only warns of and fills at random."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"the weights in {folder} lack {len(missing)} of the model's tensors: {', '.join(missing[:3])}"
        )
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, found, wanted = mismatched[0]
        raise ModelError(
            f"{len(mismatched)} tensors in {folder} aren't of the shape that config.json says: {name} is "
            f"{tuple(found)}, and should be {tuple(wanted)}"
        )
    unexpected = sorted(info["unexpected_keys"])
    if unexpected:
        log.warning("%s tensors in %s aren't used: %s", len(unexpected), folder, ", ".join(unexpected[:3]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Mute transformers' warnings: the errors here say the same in one line."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def text_config(model: PreTrainedModel) -> Any:
    """The configuration of the part that generates text. Raises ModelError where none does."""
    config = model.config.get_text_config(decoder=True)
    if not hasattr(config, "vocab_size"):
        raise ModelError(f"{type(model).__name__} isn't a causal language model: it has no vocabulary of text")
    return config


def _context_tokens(model: PreTrainedModel) -> int:
    config = text_config(model)
    sizes = [getattr(config, name, None) for name in _CONTEXT_NAMES]
    context = next((size for size in sizes if isinstance(size, int) and size > 0), _UNLIMITED)
    stable = stable_length(config)
    if stable is None or stable >= context:
        return context
    log.warning(
        "the context is cut from %s to %s tokens: beyond that, rotary factors depend on the longest running request, "
        "so a request's tokens would depend on its neighbours",
        context,
        stable,
    )
    return stable


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """All end-of-sequence tokens: chat models often name theirs in only one of the three places."""
    sources: tuple[Any, ...] = (
        getattr(model.generation_config, "eos_token_id", None),
        getattr(text_config(model), "eos_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
    )
    ids: set[int] = set()
    for source in sources:
        given = source if isinstance(source, list | tuple) else [] if source is None else [source]
        if not all(type(token_id) is int for token_id in given):
            raise ModelError(f"eos_token_id is {source!r} in the model's folder: give token IDs, integers")
        ids.update(given)
    return frozenset(token_id for token_id in ids if token_id >= 0)


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ModelError where the tokenizer is another model's. Tokens that were added to it alone, a padding token
    mostly, fail the requests that use them."""
    vocabulary, added = int(text_config(model).vocab_size), len(tokenizer)
    if tokenizer.vocab_size > vocabulary:
        raise ModelError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {vocabulary}: they don't belong together"
        )
    if added > vocabulary:
        log.warning("the tokenizer has %s tokens more than the model: prompts with them fail", added - vocabulary)
