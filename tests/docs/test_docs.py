"""The documentation is current: generated parts match their generators, and links resolve."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts import settings_docs

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_the_settings_page_is_current() -> None:
    text = settings_docs.PAGE.read_text("utf-8")
    assert settings_docs.page(text) == text, "run: make format"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
    broken = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert not broken
