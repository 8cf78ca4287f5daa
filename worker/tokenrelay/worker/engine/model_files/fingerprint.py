"""A model's fingerprint: only workers with the same one continue each other's requests."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# The files that determine a model's tokens. No others are downloaded from the Hub.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.safetensors",
    "*.safetensors.index.json",
)

_BLOCK = 1 << 20
_WHOLE_FILE_BLOCKS = 64
_SAMPLED_BLOCKS = 32


def fingerprint_folder(folder: Path, dtype: str) -> str:
    """sha256, in hex, over the names and contents of the model's files and the dtype.

    Files up to 64 MiB are read whole. Of larger ones the size and 32 blocks of 1 MiB count, evenly spaced, the first
    (with safetensors' header) and the last among them: training changes every block, and a start needn't read
    gigabytes twice. A manual edit of a larger file between those blocks isn't detected.
    """
    digest = hashlib.sha256(dtype.encode())
    paths = {path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(paths, key=lambda path: path.name):
        digest.update(f"\0{path.name}\0{path.stat().st_size}\0".encode())
        _hash_contents(path, digest)
    return digest.hexdigest()


def _hash_contents(path: Path, digest: hashlib._Hash) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE_FILE_BLOCKS * _BLOCK:
            digest.update(file.read())
            return
        for index in range(_SAMPLED_BLOCKS):
            file.seek((size - _BLOCK) * index // (_SAMPLED_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
