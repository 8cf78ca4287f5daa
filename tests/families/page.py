"""docs/models.md: the result for each family, with date and versions."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import torch
import transformers

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.families.serving import Outcome

_BEGIN: Final = """\
# Model families

Which causal language models of transformers are served, and which are refused at start. Every worker tests its model
during warm-up, before its first claim: it runs short prompts of different lengths together through the engine, and
compares each token's scores with the model's own forward pass. If they differ, the worker exits with
code 1 and a line that gives the reason. The test decides, not this list of results for tiny
random models: trained models of the same family run the same code, and are tested too.

The answers of **served** families were checked in float64 (float32 if their experts' products lack float64), token
by token, against the draw from the model's own forward pass: alone, beside four requests of other lengths, and resumed
at three positions each. All of them are right in all three cases, so the promise of an identical continuation after a
takeover holds for each, in formats with sufficiently exact arithmetic (docs/reliability.md).

`longrope` switches its factors for the whole batch as soon as one request is longer than the model's original
length, `original_max_position_embeddings`; so the context of such models is limited to it, which the worker logs
at start. `dynamic` only changes its factors beyond `max_position_embeddings`, where every context ends.

"""


def write_page(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Write the tables of all outcomes."""
    groups: dict[str, list[Outcome]] = {"served": [], "refused": [], "unbuilt": [], "wrong": []}
    for outcome in outcomes:
        groups[outcome.word].append(outcome)
    made = (
        f"Written by `make families` on {datetime.now(UTC):%Y-%m-%d}: transformers {transformers.__version__}, torch "
        f"{torch.__version__.partition('+')[0]} on a CPU, Python {platform.python_version()}.\n"
    )
    parts = [_BEGIN + made]
    if groups["wrong"]:
        parts.append(_table("Served and wrong", "what is wrong", groups["wrong"]))
    names = ", ".join(f"`{outcome.architecture}`" for outcome in groups["served"])
    parts.append(f"## Served: {len(groups['served'])}\n\n{names}.\n")
    parts.append(_table("Refused at start", "reason", groups["refused"]))
    parts.append(_table("Not tried: no tiny folder can be made", "reason", groups["unbuilt"]))
    path.write_text("\n".join(parts))


def _table(title: str, head: str, outcomes: list[Outcome]) -> str:
    rows = "".join(f"| `{outcome.architecture}` | {_cell(outcome)} |\n" for outcome in outcomes)
    return f"## {title}: {len(outcomes)}\n\n| family | {head} |\n|---|---|\n{rows}"


def _cell(outcome: Outcome) -> str:
    said = outcome.refused or outcome.unbuilt or outcome.note or "answers differ from the model's own"
    if outcome.refused and outcome.right:
        said += " (unchecked, these tiny weights' tokens come out right)"
    return said.replace("|", "\\|").replace("<", "\\<")
