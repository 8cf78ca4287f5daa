"""Comparing what Redis and the consumers hold with the undisturbed run, and adding it up over a row's runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

from tests.faults.load import piece
from tokenrelay.shared.errors import TokenRelayError
from tokenrelay.shared.wire.answer import assemble
from tokenrelay.shared.wire.entries import Ended, Migrated, State, Token

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.load import Piece, Text
    from tokenrelay.shared.wire.answer import Answer
    from tokenrelay.shared.wire.entries import Entry


@dataclass(slots=True)
class Gap:
    """One stream's interruption, in seconds since the fault, by Redis's clock."""

    released_s: float | None
    """Until its job was back in the queue."""
    claimed_s: float | None
    """Until its `migrated` event."""
    resumed_s: float
    """Time until its next token; without a takeover, the longest pause between two of its entries."""


@dataclass(slots=True)
class Tally:
    """One row of the table."""

    fault: str
    needed: int
    runs: int = 0
    streams: int = 0
    tokens: int = 0
    lost: int = 0
    repeated: int = 0
    changed: int = 0
    identical: int = 0
    takeovers: int = 0
    cut: int = 0
    """Streams that were ended before their time, and held what the undisturbed ones begin with."""
    complete: int = 0
    """Structured answers that ended complete: each was in its format."""
    consumers: int = 0
    gaps: list[Gap] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Promises that weren't kept, in words."""
    skipped: str = ""
    """Why the row couldn't be run here. Red, for nothing was shown, unless `skips_allowed`."""
    skips_allowed: bool = False
    exact: bool = True
    """Whether the texts must be identical: float64. A float32 row reports."""
    wall_s: float = 0.0

    @property
    def red(self) -> bool:
        if self.skipped:
            return not self.skips_allowed
        wrong = self.lost + self.repeated + (self.changed if self.exact else 0)
        return bool(wrong or self.broken or self.runs < self.needed)

    @property
    def claims_s(self) -> list[float]:
        """Fault to re-claim of each stream that was taken over, ascending."""
        return sorted(gap.claimed_s for gap in self.gaps if gap.claimed_s is not None)

    def require(self, kept: object, promise: str) -> None:
        if not kept:
            self.broken.append(promise)

    def receive(self, request_id: str, stream: Sequence[Entry], expected: Text) -> None:
        """Compare one ended stream with what it had to be."""
        tokens = [entry for entry in stream if isinstance(entry, Token)]
        self.streams += 1
        self.tokens += len(tokens)
        self.takeovers += sum(isinstance(entry, Migrated) for entry in stream)
        before = (self.lost, self.repeated, self.changed)
        self._compare(tokens, expected.tokens)
        try:
            answer = assemble(request_id, stream)
        except (TokenRelayError, ValueError) as error:
            self.broken.append(f"{request_id}: {error}")
            return
        if sum(isinstance(entry, Ended) for entry in stream) != 1:
            self.broken.append(f"{request_id}: not exactly one terminal event")
        self._compare_end(answer, expected)
        if (answer.usage.completion_tokens, bool(answer.usage.recomputed_tokens)) != (len(tokens), answer.attempts > 1):
            self.broken.append(f"{request_id}: wrong usage {answer.usage}")
        ended = answer.text[len("".join(token.text for token in tokens)) :]
        self.changed += ended != expected.rest
        self.identical += before == (self.lost, self.repeated, self.changed)

    def receive_cut(self, request_id: str, stream: Sequence[Entry], expected: Text, state: State) -> None:
        """Compare a stream that was ended before its time: the beginning of what it had to be, and one end."""
        tokens = [entry for entry in stream if isinstance(entry, Token)]
        self.cut += 1
        self.tokens += len(tokens)
        self.takeovers += sum(isinstance(entry, Migrated) for entry in stream)
        self._compare(tokens, expected.tokens[: len(tokens)])
        try:
            answer = assemble(request_id, stream)
        except (TokenRelayError, ValueError) as error:
            self.broken.append(f"{request_id}: {error}")
            return
        ends = sum(isinstance(entry, Ended) for entry in stream)
        self.require(ends == 1, f"{request_id}: not exactly one terminal event")
        self.require(answer.state is state, f"{request_id}: ended as {answer.state}, not {state}")
        whole = "".join(text for text, *_ in expected.tokens) + expected.rest
        self.require(whole.startswith(answer.text), f"{request_id}: not the beginning of the undisturbed text")

    def receive_copy(self, request_id: str, copy: Sequence[Entry], stream: Sequence[Entry]) -> None:
        """Compare a consumer's copy, in the order in which it came, with Redis's."""
        self.consumers += 1
        pieces = [piece(entry) for entry in stream if isinstance(entry, Token)]
        self._compare([entry for entry in copy if isinstance(entry, Token)], pieces)
        self.require(copy and isinstance(copy[-1], Ended), f"{request_id}: a consumer saw no end")

    def _compare_end(self, answer: Answer, expected: Text) -> None:
        if answer.state not in (State.INCOMPLETE, State.COMPLETED):
            self.broken.append(f"{answer.request_id}: ended as {answer.state}, {answer.code}: {answer.message}")
        self.changed += (answer.state, answer.finish_reason) != (expected.state, expected.finish_reason)
        if answer.state is State.COMPLETED and expected.format is not None:
            self.complete += 1
            self.require(expected.format.matches(answer.text), f"{answer.request_id}: complete, and not in its format")

    def _compare(self, tokens: Sequence[Token], pieces: Sequence[Piece]) -> None:
        indexes = [token.index for token in tokens]
        self.lost += len(set(range(1, len(pieces) + 1)) - set(indexes))
        self.repeated += len(indexes) - len(set(indexes) & set(range(1, len(pieces) + 1)))
        for token in tokens:
            # In float32 a prefill rounds log-probabilities otherwise than the steps that it stands for.
            compared = 3 if self.exact else 2
            if token.index <= len(pieces) and piece(token)[:compared] != pieces[token.index - 1][:compared]:
                self.changed += 1

    def receive_gap(self, stream: Sequence[Entry], fault_us: int, enqueued_at: str) -> None:
        """How long the fault interrupted this stream."""
        taken = next((e for e in stream if isinstance(e, Migrated) and e.at_us > fault_us), None)
        if taken is None:
            pauses = [after.at_us - before.at_us for before, after in pairwise(stream[1:])]
            self.gaps.append(Gap(None, None, max(pauses, default=0) / 1e6))
            return
        following = next((e.at_us for e in stream if isinstance(e, Token | Ended) and e.at_us >= taken.at_us), None)
        assert following is not None
        released = (datetime.fromisoformat(enqueued_at).timestamp() * 1e6 - fault_us) / 1e6 if enqueued_at else None
        if released is not None and not 0 <= released <= (taken.at_us - fault_us) / 1e6:
            released = None  # of another hand-over
        self.gaps.append(Gap(released, (taken.at_us - fault_us) / 1e6, (following - fault_us) / 1e6))


def milliseconds(values: Sequence[float]) -> str:
    """p50 and maximum."""
    return f"{median(values) * 1000:.0f} / {max(values) * 1000:.0f}" if values else "–"
