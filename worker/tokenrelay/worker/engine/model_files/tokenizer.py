"""The tokenizer in a model's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tokenrelay.worker.engine.contract import ModelError
from tokenrelay.worker.engine.model_files.one_line import one_line

if TYPE_CHECKING:
    from pathlib import Path


def load_tokenizer(folder: Path, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Raises ModelError for a folder without one, or with one that can't be loaded."""
    # AutoTokenizer makes an empty tokenizer of some models' class where there are no files at all.
    if not any(any(folder.glob(pattern)) for pattern in ("tokenizer*", "vocab*", "*.model", "merges.txt")):
        raise ModelError(f"{folder} has no tokenizer: no tokenizer.json, vocabulary or SentencePiece file")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # each tokenizer's own code, and Rust's, which raises nothing but Exception
        raise ModelError(f"the tokenizer in {folder} can't be loaded: {one_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(f"{folder} has no usable tokenizer: got {type(tokenizer).__name__}")
    return tokenizer
