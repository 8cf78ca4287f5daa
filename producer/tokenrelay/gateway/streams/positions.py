"""Parsing of resume positions: the Last-Event-ID header and `starting_after`.

A malformed position is refused: replaying from the beginning would duplicate what the client has.
"""

from __future__ import annotations

import re
from typing import Final

from tokenrelay.gateway.http.problems import Problem
from tokenrelay.shared.wire.entries import EntryId

_ENTRY: Final = re.compile(r"(0|[1-9][0-9]{0,14})-(0|[1-9][0-9]{0,14})")
_TOKEN: Final = re.compile(r"0|[1-9][0-9]{0,14}")
START: Final = EntryId(0, 0)


def entry_after(starting_after: str | None, last_event_id: str | None) -> EntryId:
    """The last entry that the client has. Raises Problem 400.

    `starting_after`, a token index or an entry ID, takes precedence. An empty Last-Event-ID counts as absent.
    """
    if starting_after is not None:
        if _TOKEN.fullmatch(starting_after):
            return EntryId(int(starting_after), 0)
        return _entry(starting_after, "starting_after", "a token index such as 5, or an entry ID such as 5-0")
    if last_event_id:
        return _entry(last_event_id, "Last-Event-ID", "an entry ID such as 5-0")
    return START


def sequence_after(starting_after: str | None) -> int:
    """The Responses API's `starting_after`: the last sequence_number the client has, or -1. Raises Problem 400."""
    if starting_after is None:
        return -1
    if not _TOKEN.fullmatch(starting_after):
        raise _malformed(starting_after, "starting_after", "the last sequence_number, such as 5")
    return int(starting_after)


def _entry(given: str, param: str, wanted: str) -> EntryId:
    found = _ENTRY.fullmatch(given)
    if not found:
        raise _malformed(given, param, wanted)
    return EntryId(int(found[1]), int(found[2]))


def _malformed(given: str, param: str, wanted: str) -> Problem:
    return Problem(400, f"{param}: {ascii(given)[:60]} is malformed; give {wanted}", "malformed_position", param)
