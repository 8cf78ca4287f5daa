"""Where in an answer a takeover fell."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.resumes.requests import Asked
    from tokenrelay.worker.serving.prompts import PromptReader

IN_STRING, IN_CHARACTER, IN_HELD_TEXT = "inside a JSON string", "inside a character", "inside held-back text"


def places(reader: PromptReader, asked: Asked, ids: Sequence[int], cut: int) -> set[str]:
    """What a cut behind `cut` tokens of an answer is inside of."""
    found = set()
    before = _written(reader.token_bytes, ids[:cut])
    if asked.kind.startswith("json") and _in_string(before):
        found.add(IN_STRING)
    if _in_character(before, _written(reader.token_bytes, ids[cut:])):
        found.add(IN_CHARACTER)
    if _released(reader, asked, ids[:cut], stops=True) < _released(reader, asked, ids[:cut], stops=False):
        found.add(IN_HELD_TEXT)
    return found


def _written(token_bytes: Callable[[int], bytes], ids: Sequence[int]) -> bytes:
    return b"".join(token_bytes(token_id) for token_id in ids)


def _in_string(text: bytes) -> bool:
    inside = escaped = False
    for byte in text:
        if escaped:
            escaped = False
        elif byte == ord("\\"):
            escaped = inside
        elif byte == ord('"'):
            inside = not inside
    return inside


def _in_character(before: bytes, after: bytes) -> bool:
    """Whether the next bytes complete a character that the last ones begin."""
    for begun in range(1, min(4, len(before) + 1)):
        for missing in range(1, 5 - begun):
            try:
                character = (before[-begun:] + after[:missing]).decode()
            except UnicodeDecodeError:
                continue
            if len(character) == 1 and len(after) >= missing:
                return True
    return False


def _released(reader: PromptReader, asked: Asked, ids: Sequence[int], *, stops: bool) -> int:
    """Characters that a worker has published by then."""
    options = asked.submission if stops else {**asked.submission, "stop": []}
    return sum(len(release.text) for release in reader.text(options).replay(ids))
