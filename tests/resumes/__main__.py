"""`python -m tests.resumes`: streams of every kind, resumed at random tokens; prints the table of docs/reliability.md.

Exit code 1 where float64 isn't exact, or the streams prove too little. float32 is reported.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

import torch

from tests.resumes.cuts import IN_CHARACTER, IN_HELD_TEXT, IN_STRING
from tests.resumes.suite import run
from tokenrelay.worker.engine.transformers.models import load_model
from tokenrelay.worker.models import weather_model_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.resumes.suite import Outcome

LEAST_COUNTED: Final = 0.6
"""Of all streams. The kinds' parameters are made for the bundled model: another's may be tame in some of them."""
_INSIDE: Final = (IN_STRING, IN_CHARACTER, IN_HELD_TEXT)


def main() -> int:
    """1 where a stream isn't as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.resumes", description=__doc__)
    parser.add_argument("--model", default=str(weather_model_path()))
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--streams", type=int, default=30, help="of each kind")
    parser.add_argument("--takeovers", type=int, default=2, help="of each stream, one at a time")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = run(
        lambda: load_model(chosen.model, device="cpu", dtype=chosen.dtype),
        chosen.streams,
        chosen.takeovers,
        chosen.tokens,
        chosen.seed,
    )
    sys.stdout.write(table(outcomes))
    wrong = [problem for outcome in outcomes.values() for problem in problems(outcome, chosen.dtype)]
    counted = sum(outcome.counted for outcome in outcomes.values())
    if counted < LEAST_COUNTED * sum(len(outcome.streams) for outcome in outcomes.values()):
        wrong.append(f"only {counted} streams could show an error")
    sys.stdout.write("".join(f"{line}\n" for line in [*wrong, summary(outcomes, chosen.dtype)]))
    return 1 if wrong else 0


def table(outcomes: Mapping[str, Outcome]) -> str:
    """Markdown, a row for each kind."""
    head = "kind", "streams", "counted", "verified", "takeovers", "identical", "bits", "changed", *_INSIDE
    rows = [head, ("---",) * len(head)]
    for kind, each in outcomes.items():
        measured = [stream.measured for stream in each.streams]
        shown = (len(measured), each.counted, each.verified, each.takeovers, each.takeovers - len(each.changed))
        bits, changed = (
            sum(values) / len(measured) for values in zip(*((m.bits, m.changed) for m in measured), strict=True)
        )
        inside = (each.inside[place] for place in _INSIDE)
        rows.append((kind, *map(str, shown), f"{bits:.1f}", f"{changed:.0%}", *map(str, inside)))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def problems(outcome: Outcome, dtype: str) -> list[str]:
    """What the streams of a kind didn't keep."""
    found = [f"{name}: complete, and not in its format" for name in outcome.unfit]
    if dtype == "float64":
        found += [f"{place}: resumed with another answer" for place in (*outcome.changed, *outcome.rounded)]
        found += [f"{each.asked.name}: not verified" for each in outcome.streams if not each.measured.verified]
    return found


def summary(outcomes: Mapping[str, Outcome], dtype: str) -> str:
    """The sums."""
    every = outcomes.values()
    streams, takeovers = sum(len(each.streams) for each in every), sum(each.takeovers for each in every)
    identical = takeovers - sum(len(each.changed) for each in every)
    return (
        f"{dtype}: {streams} streams, {sum(each.counted for each in every)} of them count; {identical} of {takeovers} "
        f"takeovers identical, in {sum(len(each.rounded) for each in every)} but for rounded log-probabilities; "
        f"{sum(each.verified for each in every)} of {streams} verified"
    )


if __name__ == "__main__":
    sys.exit(main())
