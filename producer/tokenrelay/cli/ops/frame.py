"""Rendering of one `tokenrelay top` frame from a snapshot, fitted to the terminal's height. Does no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.text import Text

from tokenrelay.cli.ops.listing import list_state
from tokenrelay.cli.ops.snapshot import RATE_WINDOW_S, WINDOW_S
from tokenrelay.cli.terminal.output import visible
from tokenrelay.cli.terminal.tables import Columns, counted, duration, milliseconds, percentile_table, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from tokenrelay.cli.ops.diagnosis import Finding
    from tokenrelay.cli.ops.request_summaries import RequestSummary
    from tokenrelay.cli.ops.snapshot import Snapshot

UNLIMITED: Final = 1 << 10
_MAX_ROWS: Final = {"worker": 20, "queue": 20, "slowest running": 8, "newest": 8, "migrated to": 5}
_FIXED_LINES: Final = 9
"""Lines of header, percentiles and blank lines."""
_REQUEST: Final[Columns] = (
    ("", "<"),
    ("state", "<"),
    ("time", ">"),
    ("wait", ">"),
    ("ttft", ">"),
    ("tokens", ">"),
    ("per token", ">"),
    ("tries", ">"),
)


@dataclass(frozen=True, slots=True)
class _Section:
    """A table before truncation. `name` heads its first column."""

    name: str
    columns: Columns
    rows: Sequence[Sequence[str]]

    @property
    def wanted(self) -> int:
        return min(len(self.rows), _MAX_ROWS[self.name])

    def render(self, rows: int) -> RenderableType:
        cut = f" ({rows} of {len(self.rows)})" if rows < len(self.rows) else ""
        return table(
            ((self.name + cut, "<"), *self.columns[1:]), self.rows[:rows], gap=1 if self.columns is _REQUEST else 2
        )


def frame(
    shot: Snapshot, findings: Sequence[Finding], *, where: str, lines: int = UNLIMITED, trouble: str = ""
) -> Group:
    """The frame, at most `lines` high. `where`: Redis's address; `trouble`: why the snapshot is stale."""
    warnings = [Text(f"! {visible(trouble)}; showing the last snapshot", style="bold red")] if trouble else []
    warnings += [Text(f"! {visible(one.message)} → {visible(one.remedy)}", style="yellow") for one in findings]
    if lines < UNLIMITED:
        warnings = warnings[: max(1, lines // 12)]
        for warning in warnings:
            warning.no_wrap, warning.overflow = True, "ellipsis"
    room = lines - _FIXED_LINES - len(warnings)
    sections = [section for section in _sections(shot) if section.rows][: max(0, room // 2)]
    room -= len(sections)
    roomy = room - len(sections) >= sum(section.wanted for section in sections)
    parts: list[RenderableType] = [*_head(shot, where), *warnings, Text(), _percentiles(shot)]
    for section, rows in zip(sections, _allocate_rows([section.wanted for section in sections], room), strict=True):
        if rows:
            parts += [*([Text()] if roomy else []), section.render(rows)]
    return Group(*parts)


def _allocate_rows(wanted: Sequence[int], room: int) -> list[int]:
    """Rows for each table, allocated round-robin up to what each wants and the room allows."""
    given = [0] * len(wanted)
    while room > 0 and given != list(wanted):
        for number, most in enumerate(wanted):
            if given[number] < most and room > 0:
                given[number] += 1
                room -= 1
    return given


def _head(shot: Snapshot, where: str) -> list[Text]:
    now = shot.system
    alive = [worker for worker in now.workers if worker.alive]
    slots = sum(worker.slots or 0 for worker in alive)
    server = f"Redis {now.server.version}" if now.server else "Redis"
    clock = datetime.fromtimestamp(now.now_us / 1e6, UTC).strftime("%H:%M:%S UTC")
    running = f"{shot.running_in_all:,} running" + (f" in {slots:,} slots" if slots else "")
    counts = [f"{shot.waiting_in_all:,} waiting", running, counted(len(alive), "worker")]
    rate: list[str | tuple[str, str]] = []
    if shot.readable:
        rate = [(f"{shot.tokens_per_s:,.0f} tokens/s", "bold"), f" over {RATE_WINDOW_S:.0f} s, "]
    lines = [
        Text.assemble(("tokenrelay top", "bold"), f"  {server} at {visible(where)}  {clock}"),
        Text.assemble(*rate, ", ".join(counts), *([("  SUSPENDED", "bold red")] if now.suspended else [])),
    ]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return lines


def _percentiles(shot: Snapshot) -> RenderableType:
    if not shot.readable:
        return Text("This Redis user may not read requests, so there are no latencies or token rates.", style="dim")
    spreads = {
        "queue wait": shot.queue_wait_ms,
        "first token": shot.ttft_ms,
        "between tokens": shot.inter_token_ms,
    }
    render = percentile_table(f"last {WINDOW_S:.0f} s", spreads)
    if not shot.is_sample:
        return render
    seen = f"a sample: {len(shot.running):,} of {shot.running_in_all:,} running, the last {len(shot.ended):,} ended"
    return Group(render, Text(seen, style="dim"))


def _sections(shot: Snapshot) -> list[_Section]:
    now_us = shot.system.now_us
    return [
        _workers(shot),
        _queues(shot),
        _Section("slowest running", _REQUEST, [_request(one, now_us) for one in shot.slowest]),
        _Section("newest", _REQUEST, [_request(one, now_us) for one in shot.newest]),
        _migrations(shot),
    ]


def _workers(shot: Snapshot) -> _Section:
    columns: Columns = (
        ("", "<"),
        ("state", "<"),
        ("slots", ">"),
        ("heard", ">"),
        ("ended", ">"),
        ("failed", ">"),
        ("model", "<"),
    )
    rows = [
        (
            worker.name,
            worker.state if worker.alive else "silent",
            "—" if worker.slots is None else f"{worker.in_flight or 0}/{worker.slots}",
            duration(worker.silent_s),
            f"{worker.finished + worker.failed:,}",
            f"{worker.failed:,}",
            ", ".join(worker.models),
        )
        for worker in shot.system.workers
    ]
    return _Section("worker", columns, rows)


def _queues(shot: Snapshot) -> _Section:
    columns: Columns = (("", "<"), ("waiting", ">"), ("oldest", ">"), ("running", ">"), ("workers", ">"))
    busiest = sorted(shot.system.queues, key=lambda queue: -(queue.waiting + queue.running))
    rows = [
        (
            queue.name,
            f"{queue.waiting:,}",
            duration(queue.oldest_wait_s),
            f"{queue.running:,}",
            f"{queue.workers:,}",
        )
        for queue in busiest
    ]
    return _Section("queue", columns, rows)


def _request(one: RequestSummary, now_us: int) -> Sequence[str]:
    gaps = one.gaps_ms
    return (
        one.request_id,
        list_state(one),
        duration(one.age_s(now_us)),
        milliseconds(one.queue_wait_ms),
        milliseconds(one.ttft_ms),
        f"{one.tokens:,}",
        milliseconds(sum(gaps) / len(gaps) if gaps else None),
        str(one.attempts),
    )


def _migrations(shot: Snapshot) -> _Section:
    columns: Columns = (("", "<"), ("ago", ">"), ("at token", ">"), ("try", ">"), ("request", "<"))
    rows = [
        (
            one.worker,
            duration((shot.system.now_us - one.at_us) / 1e6),
            f"{one.resumed_at:,}",
            str(one.attempt),
            one.request_id,
        )
        for one in shot.migrations
    ]
    return _Section("migrated to", columns, rows)
