"""Loading a model: a folder or a Hub name gives the model, its tokenizer and what must be known of them.

Owns the errors about model folders. Knows nothing of batching or the KV cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tokenrelay.worker.engine.contract import ModelError
from tokenrelay.worker.engine.device import choose_device, choose_dtype
from tokenrelay.worker.engine.fingerprint import MODEL_FILES, fingerprint_folder
from tokenrelay.worker.engine.linear import pack_linears

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
    fingerprint: str  # equal where another worker would continue this one's requests alike


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
    _check_folder(folder)
    tokenizer = _load_tokenizer(folder, trust_remote_code)
    model = _load_weights(folder, target, number_format, trust_remote_code)
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


def find_folder(name_or_folder: str | Path, *, trust_remote_code: bool = False) -> Path:
    """The folder itself, or the local snapshot of a Hub name. Raises ModelError for neither."""
    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder
    name = str(name_or_folder)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no model folder {name}")
    patterns = [*MODEL_FILES, "*.py"] if trust_remote_code else list(MODEL_FILES)
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except HFValidationError as error:
        raise ModelError(f"{name!r} is neither a folder nor a Hub name") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{name!r} is no folder, and the Hugging Face Hub doesn't give it ({type(error).__name__}): check the "
            "name, HF_TOKEN for a gated model, and that this host reaches the Hub or has the model in its cache"
        ) from error


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no model folder: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern))
        found = f", only {', '.join(others[:3])}" if others else ""
        raise ModelError(
            f"{folder} has no *.safetensors{found}: other weight files aren't loaded, they can run code. "
            "Save it with save_pretrained() of transformers to convert it"
        )


def _load_weights(folder: Path, device: torch.device, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=trust_remote_code, output_loading_info=True
        )
        model, info = cast("tuple[PreTrainedModel, dict[str, set[str]]]", loaded)
        torch.nn.Module.to(model, device)  # in place; the model's own `to` is wrapped and loses its types
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} can't be loaded as a causal language model: {error}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        # transformers fills them with random numbers and warns.
        raise ModelError(
            f"the weights in {folder} lack {len(missing)} of the model's tensors: {', '.join(missing[:3])}"
        )
    return model


def _load_tokenizer(folder: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    # AutoTokenizer makes an empty tokenizer of some models' class where there are no files at all.
    if not any(any(folder.glob(pattern)) for pattern in ("tokenizer*", "vocab*", "*.model", "merges.txt")):
        raise ModelError(f"{folder} has no tokenizer: no tokenizer.json, vocabulary or SentencePiece file")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise ModelError(f"the tokenizer in {folder} can't be loaded: {error}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(f"{folder} has no usable tokenizer: got {type(tokenizer).__name__}")
    return tokenizer


def _context_tokens(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    for name in _CONTEXT_NAMES:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return _UNLIMITED


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """All the tokens that end an answer: chat models often name theirs in only one of the three places."""
    sources: tuple[Any, ...] = (
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config.get_text_config(), "eos_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
    )
    ids: set[int] = set()
    for source in sources:
        ids.update([source] if isinstance(source, int) else source or [])
    return frozenset(token_id for token_id in ids if token_id >= 0)
