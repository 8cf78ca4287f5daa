"""A handful of families through all that `make families` judges; it runs over every architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.families.__main__ import try_architecture
from tests.families.page import write_page
from tests.families.serving import Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from _pytest.mark import ParameterSet

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def more(*names: str) -> list[ParameterSet]:
    """Further families: each is a process that imports everything, which takes seconds."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize(
    "name",
    ["phi3, rope longrope", *more("qwen2, windows in some layers", "mixtral", "gemma2, strong softcap", "got_ocr2")],
)
def test_a_served_family_is_right_alone_together_and_resumed(name: str) -> None:
    outcome = try_architecture(name)
    assert (outcome.word, outcome.refused, outcome.unbuilt) == ("served", "", ""), outcome


@pytest.mark.parametrize(
    "name", ["gptj", "mamba", *more("falcon, ALiBi", "deepseek_v3", "bart", "bert, as an encoder")]
)
def test_a_family_that_would_be_wrong_is_refused(name: str) -> None:
    outcome = try_architecture(name)
    assert outcome.word == "refused", outcome
    assert not outcome.right
    assert "\n" not in outcome.refused


def test_the_page_names_what_must_not_be(tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    write_page(
        page, [Outcome("good", alone=True, together=True, resumed=True), Outcome("bad"), Outcome("ugly", "why|")]
    )
    text = page.read_text()
    assert "## Served: 1\n\n`good`." in text
    assert "## Served and wrong: 1" in text
    assert "| `ugly` | why\\| |" in text
