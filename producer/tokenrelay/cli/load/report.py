"""What a load run measured: percentiles, counts and two curves over time. Computes and draws; drives nothing."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.text import Text

from tokenrelay.cli.drawing import Columns, duration, milliseconds, table
from tokenrelay.cli.load.chart import bars
from tokenrelay.cli.ops.diagnosis import counted
from tokenrelay.cli.output import visible
from tokenrelay.cli.spread import Spread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.console import RenderableType

    from tokenrelay.cli.load.run import Outcome

COLUMNS: Final = 60
"""Of the curves; a slice of the run is a second at least, and takes as many of them as there are for it."""
LATE_MS: Final = 50.0
"""A driver whose p99 is later than this fell behind: its own lateness is in the latencies then."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A slice of the run: median TTFT of the requests that were to arrive in it, tokens that came in it."""

    begin_s: float
    ttft_p50_ms: float | None
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """The whole run. TTFT and total count from the intended arrival; queue wait and inter-token are Redis's times."""

    seed: int
    rate_asked: float
    duration_s: float
    """How long requests were submitted: less than asked for where it was stopped."""
    stopped: bool
    requests: int
    rate: float
    states: Mapping[str, int]
    errors: Mapping[str, int]
    migrations: int
    prompt_tokens: int
    tokens: int
    """Of all these requests; `tokens_per_s` counts those that came while requests were submitted."""
    tokens_per_s: float
    queue_wait_ms: Spread
    ttft_ms: Spread
    inter_token_ms: Spread
    total_ms: Spread
    late_ms: Spread
    buckets: tuple[Bucket, ...]

    @property
    def fell_behind(self) -> bool:
        return (self.late_ms.p99 or 0.0) > LATE_MS

    def as_json(self) -> dict[str, Any]:
        """One JSON object: docs/operations.md lists its fields."""
        spreads = {name: value.as_json() for name in _SPREADS if isinstance(value := getattr(self, name), Spread)}
        return {**asdict(self), **spreads, "client_fell_behind": self.fell_behind}


_SPREADS: Final = ("queue_wait_ms", "ttft_ms", "inter_token_ms", "total_ms", "late_ms")


def report(
    outcomes: Sequence[Outcome], errors: Mapping[str, int], *, seed: int, rate: float, window_s: float, stopped: bool
) -> Report:
    """The figures of a run whose requests were submitted over `window_s` seconds."""
    answered = [one for one in outcomes if one.state in ("completed", "incomplete")]
    in_window = sum(at_s < window_s for one in outcomes for at_s in one.tokens_s)
    return Report(
        seed=seed,
        rate_asked=rate,
        duration_s=round(window_s, 3),
        stopped=stopped,
        requests=len(outcomes),
        rate=round(len(outcomes) / window_s, 3) if window_s else 0.0,
        states=dict(Counter(one.state for one in outcomes).most_common()),
        errors=dict(errors),
        migrations=sum(one.migrations for one in outcomes),
        prompt_tokens=sum(one.prompt_tokens for one in outcomes),
        tokens=sum(len(one.tokens_s) for one in outcomes),
        tokens_per_s=round(in_window / window_s, 3) if window_s else 0.0,
        queue_wait_ms=Spread.of(one.queue_wait_ms for one in outcomes if one.queue_wait_ms is not None),
        ttft_ms=_since_intended(outcomes, lambda one: one.first_token_s),
        inter_token_ms=Spread.of(gap for one in outcomes for gap in one.gaps_ms),
        total_ms=_since_intended(answered, lambda one: one.ended_s),
        late_ms=_since_intended(outcomes, lambda one: one.submitted_s),
        buckets=_buckets(outcomes, window_s),
    )


def _since_intended(outcomes: Sequence[Outcome], when: Callable[[Outcome], float | None]) -> Spread:
    return Spread.of(1000 * (at_s - one.intended_s) for one in outcomes if (at_s := when(one)) is not None)


def _buckets(outcomes: Sequence[Outcome], window_s: float) -> tuple[Bucket, ...]:
    if not window_s:
        return ()
    slices = min(COLUMNS, math.ceil(window_s))
    width_s = window_s / slices
    tokens = Counter(int(at_s / width_s) for one in outcomes for at_s in one.tokens_s)
    found = []
    for number in range(slices):
        arrived = [one for one in outcomes if int(one.intended_s / width_s) == number]
        p50 = _since_intended(arrived, lambda one: one.first_token_s).p50
        ttft_ms = None if p50 is None else round(p50, 3)
        found.append(Bucket(round(number * width_s, 3), ttft_ms, round(tokens[number] / width_s, 3)))
    return tuple(found)


def drawn(found: Report) -> Group:
    """The report for people, 80 columns wide."""
    columns: Columns = (("", "<"), *((name, ">") for name in ("p50", "p90", "p99", "max", "count")))
    named = (
        ("queue wait", found.queue_wait_ms),
        ("first token", found.ttft_ms),
        ("between tokens", found.inter_token_ms),
        ("whole answer", found.total_ms),
    )
    rows = [
        (name, *(milliseconds(value) for value in (of.p50, of.p90, of.p99, of.max)), f"{of.count:,}")
        for name, of in named
    ]
    states = ", ".join(f"{number:,} {state}" for state, number in found.states.items()) or "no request"
    passes = f", {counted(found.migrations, 'migration')}" if found.migrations else ""
    stopped = "stopped after " if found.stopped else ""
    lines = [
        Text(f"{states}{passes}", style="bold"),
        Text(
            f"{found.requests:,} requests in {stopped}{duration(found.duration_s)}: {found.rate:.2f}/s of "
            f"{found.rate_asked:g}/s asked for, seed {found.seed}"
        ),
        Text.assemble(
            (f"{found.tokens_per_s:,.1f} tokens/s", "bold"),
            f" while they came; {found.tokens:,} in all, for prompts of {found.prompt_tokens:,}",
        ),
    ]
    parts: list[RenderableType] = [*lines, Text(), table(columns, rows), *_curves(found), *_warnings(found)]
    return Group(*parts)


def _curves(found: Report) -> list[Text]:
    if not found.buckets:
        return []
    until, wide = duration(found.duration_s), COLUMNS // len(found.buckets)
    ttft = bars([bucket.ttft_p50_ms for bucket in found.buckets], milliseconds, wide)
    rate = bars([bucket.tokens_per_s for bucket in found.buckets], lambda value: f"{value:,.0f}", wide)
    return [
        Text("\nfirst token, median of those that arrived then", style="dim"),
        *map(Text, ttft),
        Text("tokens/s", style="dim"),
        *map(Text, rate),
        Text(f"{'0 s':>9} {until:>{max(wide * len(found.buckets) - 1, len(until))}}", style="dim"),
    ]


def _warnings(found: Report) -> list[Text]:
    told = [f"{counted(number, 'time')}: {message}" for message, number in found.errors.items()]
    if found.fell_behind:
        late = milliseconds(found.late_ms.p99)
        told.append(
            f"this process fell behind: 1 request in 100 was submitted {late} late or more, which is in the times"
        )
    return [Text(f"! {visible(one)}", style="yellow") for one in told]
