"""`tokenrelay trace`: a request's stages and prediction layers as two tables, and its latencies.

The middle of long prompts and answers is elided; `--json` has everything. Model text is escaped and never parsed as
rich markup.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Final, assert_never

from rich.table import Table
from rich.text import Text

from tokenrelay.cli.terminal.output import print_rich, visible, write_json
from tokenrelay.cli.terminal.tables import counted
from tokenrelay.producer.trace import Kind, as_json, traced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from tokenrelay.producer._core.drivers import Driver
    from tokenrelay.producer.trace import Line, Trace

_MAX_PIECES: Final = 24
_MAX_CHARS: Final = 240
_MAX_LINES: Final = 40


def _style(kind: Kind) -> str | None:
    match kind:
        case Kind.QUEUED:
            return "dim"
        case Kind.TOKENIZATION | Kind.INITIAL | Kind.STREAMING:
            return None
        case Kind.BATON_PASS:
            return "bold yellow"
        case Kind.ASSEMBLY:
            return "green"
        case Kind.FAILED | Kind.CANCELLED | Kind.EXPIRED:
            return "bold red"
        case _:
            assert_never(kind)


def write_trace(driver: Driver, request_id: str, *, json: bool = False) -> None:
    """Write the request's trace so far. Raises RequestNotFound, StreamExpired, StreamGap, RedisUnusable."""
    trace = driver.run(traced(request_id))
    if json:
        write_json(as_json(trace))
        return
    print_rich(lambda console: print_trace(console, trace))


def print_trace(console: Console, trace: Trace) -> None:
    """Print the trace at the console's width."""
    takeovers = max(0, len(trace.workers) - 1)
    title = [f"{trace.state} ({trace.finish_reason})" if trace.finish_reason else str(trace.state)]
    title += [f"model {trace.model}"] if trace.model else []
    title += [counted(takeovers, "takeover")] if takeovers else []
    console.print(Text.assemble(("request ", "dim"), (trace.request_id, "bold"), "  ", ", ".join(title)))
    console.print()
    console.print(_stages(trace))
    console.print()
    console.print(_prediction(trace, console))
    console.print()
    console.print(_times(trace))
    if trace.problem:
        console.print(Text(f"{trace.state}: {visible(trace.problem)}", style="bold red"))
    console.print(Text(_gain(trace), style="bold"))


def _stages(trace: Trace) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for number, stage in enumerate(trace.stages, 1):
        separator = " | " if stage.name in ("Tokenization", "Model generation") else "  "
        texts = [_piece(text) if separator == " | " else visible(text) for text in stage.data]
        shown = _elided_text(separator.join(_elided(texts, _MAX_PIECES)))
        table.add_row(str(number), stage.name, stage.shape, Text(shown))
    return table


def _prediction(trace: Trace, console: Console) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", title_justify="left", title_style="")
    table.title = Text(f"Prediction trace: {trace.layers} layer{'' if trace.layers == 1 else 's'}", style="bold")
    table.add_column("", justify="right", style="dim", no_wrap=True)
    table.add_column("layer", no_wrap=True)
    table.add_column("data", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("Redis time", no_wrap=True, style="dim")
    table.add_column("ms", justify="right", no_wrap=True, style="cyan")
    elided = _elided_lines(trace.lines)
    for is_elided, numbers in groupby(range(len(trace.lines)), elided.__contains__):
        lines = [trace.lines[number] for number in numbers]
        if is_elided:
            table.add_row("", f"… {len(lines):,} more, in --json", style="dim")
            continue
        for line in lines:
            table.add_row(*_row(line), style=_style(line.kind))
    table.width = min(console.width, 100)
    return table


def _row(line: Line) -> tuple[str, str, Text, str, str]:
    data = f'"{visible(line.data)}"' if line.token_id is not None else visible(line.data)
    return str(line.layer or ""), line.kind, Text(data), _clock(line.at_us), f"{line.step_ms:+,.1f}"


def _elided_lines(lines: Sequence[Line]) -> set[int]:
    """Indexes of the streamed lines elided from the middle of a long answer."""
    streamed = [number for number, line in enumerate(lines) if line.kind == Kind.STREAMING]
    if len(lines) <= _MAX_LINES:
        return set()
    kept = _MAX_LINES // 2
    return {number for number in streamed if kept <= number < len(lines) - kept}


def _times(trace: Trace) -> Table:
    latency, gaps = trace.latency, trace.latency.inter_token_ms
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in (
        ("queue wait", latency.queue_wait_ms),
        ("time to first token", latency.ttft_ms),
        ("between tokens", latency.mean_inter_token_ms),
        ("total", latency.total_ms),
    ):
        median = latency.median_inter_token_ms or 0.0
        spread = f"mean; median {_ms(median)}, at most {_ms(max(gaps))}" if gaps and name == "between tokens" else ""
        table.add_row(Text(name, style="dim"), Text(_ms(value) if value is not None else "—", style="cyan"), spread)
    table.columns[1].justify = "right"
    return table


def _gain(trace: Trace) -> str:
    """A sentence on how much earlier streaming showed the first word."""
    latency, so_far_ms = trace.latency, (trace.now_us - trace.lines[0].at_us) / 1000
    first_ms, total_ms, sooner_ms = latency.first_word_ms, latency.total_ms, latency.sooner_ms
    if first_ms is None:
        return "No word reached the reader" + ("." if trace.state.terminal else f" in the {_ms(so_far_ms)} so far.")
    if total_ms is None or sooner_ms is None:
        return f"The reader saw the first word after {_ms(first_ms)}; still running after {_ms(so_far_ms)}."
    if trace.problem:
        return f"The reader saw the first word after {_ms(first_ms)}, {_ms(sooner_ms)} before the end."
    times = f" ({total_ms / first_ms:,.1f} × sooner)" if total_ms > 1.1 * first_ms > 0 else ""
    return (
        f"The reader saw the first word {_ms(sooner_ms)} before the whole answer: "
        f"after {_ms(first_ms)} instead of {_ms(total_ms)}{times}."
    )


def _ms(value: float) -> str:
    return f"{value / 1000:,.2f} s" if value >= 10_000 else f"{value:.1f} ms"


def _clock(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).strftime("%H:%M:%S.%f")[:-3]


def _piece(text: str) -> str:
    """A token's text without surrounding blanks, or a symbol for a blank or empty one."""
    return visible(text.strip(" ")) or ("·" if not text else "␠")


def _elided(pieces: Sequence[str], most: int) -> list[str]:
    if len(pieces) <= most:
        return list(pieces)
    half = most // 2
    return [*pieces[:half], f"… {len(pieces) - 2 * half:,} more …", *pieces[-half:]]


def _elided_text(text: str) -> str:
    if len(text) <= _MAX_CHARS:
        return text
    half = _MAX_CHARS // 2
    return f"{text[:half]} … {len(text) - 2 * half:,} characters … {text[-half:]}"
