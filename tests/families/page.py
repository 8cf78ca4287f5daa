"""docs/models.md: what came of each family, dated, with the versions."""

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
in the warm-up, before it claims anything: short prompts of different lengths together through the engine, and the
scores of each token compared with the model's own forward pass. A model that differs isn't served: the worker ends with
exit code 1 and one line that names the reason. The test decides, not this list, which says what it decided for tiny
random models: trained ones of the same family run the same code, and are tested as they are.

What a **served** family answers was judged in float64 (float32 where its experts' products know nothing else), token
by token, against the draw from the model's own forward pass: alone, beside four requests of other lengths, and resumed
at three cuts of each. All of them are right in all three, so the promise of an identical continuation after a takeover
holds for each, in formats whose arithmetic is exact enough (docs/reliability.md).

`longrope` takes other factors for everybody as soon as one request of a step is longer than the length that the model
was first trained on, `original_max_position_embeddings`; there the context of such models is cut, which the worker says
at start. `dynamic` grows its factors beyond `max_position_embeddings` only, where every context ends.

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
