"""The report of a load run: percentiles, counts and two curves over time. Does no I/O."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.text import Text

from tokenrelay.cli.load.chart import bars
from tokenrelay.cli.terminal.output import visible
from tokenrelay.cli.terminal.tables import Percentiles, counted, duration, milliseconds, percentile_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rich.console import RenderableType

    from tokenrelay.cli.load.run import Outcome

COLUMNS: Final = 60
"""Width of the curves. A bucket is at least one second, and may be several columns wide."""
LATE_MS: Final = 50.0
"""If the p99 submit delay exceeds this, the client fell behind, and its own delay is part of the latencies."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A time slice of the run: median TTFT of the requests scheduled in it, and the rate of tokens received in it."""

    begin_s: float
    ttft_p50_ms: float | None
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Report:
    """The whole run. TTFT and total count from the scheduled arrival; queue wait and inter-token are Redis times."""

    seed: int
    rate_asked: float
    duration_s: float
    """How long requests were submitted; shorter than asked for if stopped."""
    stopped: bool
    requests: int
    rate: float
    states: Mapping[str, int]
    errors: Mapping[str, int]
    migrations: int
    prompt_tokens: int
    tokens: int
    """Of all requests; `tokens_per_s` counts only those received within `duration_s`."""
    tokens_per_s: float
    queue_wait_ms: Percentiles
    ttft_ms: Percentiles
    inter_token_ms: Percentiles
    total_ms: Percentiles
    late_ms: Percentiles
    buckets: tuple[Bucket, ...]

    @property
    def fell_behind(self) -> bool:
        return (self.late_ms.p99 or 0.0) > LATE_MS

    def as_json(self) -> dict[str, Any]:
        """One JSON object: docs/operations.md lists its fields."""
        spreads = {
            name: value.as_json() for name in _PERCENTILES if isinstance(value := getattr(self, name), Percentiles)
        }
        return {**asdict(self), **spreads, "client_fell_behind": self.fell_behind}


_PERCENTILES: Final = ("queue_wait_ms", "ttft_ms", "inter_token_ms", "total_ms", "late_ms")


def report(
    outcomes: Sequence[Outcome], errors: Mapping[str, int], *, seed: int, rate: float, window_s: float, stopped: bool
) -> Report:
    """Compute the report of a run that submitted requests for `window_s` seconds."""
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
        queue_wait_ms=Percentiles.of(one.queue_wait_ms for one in outcomes if one.queue_wait_ms is not None),
        ttft_ms=_since_intended(outcomes, lambda one: one.first_token_s),
        inter_token_ms=Percentiles.of(gap for one in outcomes for gap in one.gaps_ms),
        total_ms=_since_intended(answered, lambda one: one.ended_s),
        late_ms=_since_intended(outcomes, lambda one: one.submitted_s),
        buckets=_buckets(outcomes, window_s),
    )


def _since_intended(outcomes: Sequence[Outcome], when: Callable[[Outcome], float | None]) -> Percentiles:
    return Percentiles.of(1000 * (at_s - one.intended_s) for one in outcomes if (at_s := when(one)) is not None)


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


def render(found: Report) -> Group:
    """The report as text, 80 columns wide."""
    spreads = {
        "queue wait": found.queue_wait_ms,
        "first token": found.ttft_ms,
        "between tokens": found.inter_token_ms,
        "whole answer": found.total_ms,
    }
    states = ", ".join(f"{number:,} {state}" for state, number in found.states.items()) or "no request"
    migrations = f", {counted(found.migrations, 'migration')}" if found.migrations else ""
    stopped = "stopped after " if found.stopped else ""
    lines = [
        Text(f"{states}{migrations}", style="bold"),
        Text(
            f"{found.requests:,} requests in {stopped}{duration(found.duration_s)}: {found.rate:.2f}/s of "
            f"{found.rate_asked:g}/s asked for, seed {found.seed}"
        ),
        Text.assemble(
            (f"{found.tokens_per_s:,.1f} tokens/s", "bold"),
            f" during submission; {found.tokens:,} in total, for {found.prompt_tokens:,} prompt tokens",
        ),
    ]
    parts: list[RenderableType] = [*lines, Text(), percentile_table("", spreads), *_curves(found), *_warnings(found)]
    return Group(*parts)


def _curves(found: Report) -> list[Text]:
    if not found.buckets:
        return []
    until, wide = duration(found.duration_s), COLUMNS // len(found.buckets)
    ttft = bars([bucket.ttft_p50_ms for bucket in found.buckets], milliseconds, wide)
    rate = bars([bucket.tokens_per_s for bucket in found.buckets], lambda value: f"{value:,.0f}", wide)
    return [
        Text("\nfirst token, median by arrival", style="dim"),
        *map(Text, ttft),
        Text("tokens/s", style="dim"),
        *map(Text, rate),
        Text(f"{'0 s':>9} {until:>{max(wide * len(found.buckets) - 1, len(until))}}", style="dim"),
    ]


def _warnings(found: Report) -> list[Text]:
    warnings = [f"{counted(number, 'time')}: {message}" for message, number in found.errors.items()]
    if found.fell_behind:
        late = milliseconds(found.late_ms.p99)
        warnings.append(f"this process fell behind: the p99 submit delay is {late}, which is part of the latencies")
    return [Text(f"! {visible(one)}", style="yellow") for one in warnings]
