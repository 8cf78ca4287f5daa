"""docs/sampling.md and its test vectors: what the worker draws, what the page says, and what the file holds agree."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scripts import sampling_vectors
from tests import reference_draw as reference
from tokenrelay.worker.sampling.adjustments import STAGES
from tokenrelay.worker.sampling.draw import DRAW_VERSION

CONTENT: dict[str, Any] = json.loads(sampling_vectors.FILE.read_text("utf-8"))
PAGE = sampling_vectors.FILE.with_name("sampling.md").read_text("utf-8")

WHOLE = {"nothing", "all", "no token left"}
"""Cases that aren't of one stage."""


def close(value: Any) -> Any:
    """As the page says."""
    return pytest.approx(value, rel=1e-5, abs=1e-5)


def test_the_vectors_are_the_workers_draw() -> None:
    """Changing one is changing the draw's version: streams of the version before would come out differently."""
    current = sampling_vectors.vectors()
    assert current["draw"] == CONTENT["draw"] == DRAW_VERSION
    for case, stored in zip(current["noise"], CONTENT["noise"], strict=True):
        assert {**case, "noise": None} == {**stored, "noise": None}
        assert case["noise"] == close(stored["noise"])
    assert json.loads(json.dumps(current["draws"])) == CONTENT["draws"], "run: python scripts/sampling_vectors.py"


def test_the_page_alone_gives_the_noise() -> None:
    for case in CONTENT["noise"]:
        key = reference.noise_key(int(case["seed"]), int(case["position"]))
        bits = [reference.noise_bits(key, token_id) for token_id in case["ids"]]
        assert hex(key) == case["key"]
        assert [hex(each) for each in bits] == case["bits"]
        assert [reference.noise(each) for each in bits] == close(case["noise"])


def test_the_page_alone_gives_the_draws() -> None:
    for index, case in enumerate(CONTENT["draws"]):
        scores = reference.adjusted(case)
        shown = [reference.NONE if score is None else score for score in case["adjusted"]]
        assert scores == close(shown), (index, case["name"])
        if case["kept"] is not None and max(scores) > reference.NONE:
            assert sorted(reference.filtered(scores, case["options"])) == case["kept"], (index, case["name"])
        assert reference.draw(case) == case["token"], (index, case["name"])


def test_each_stage_changes_some_draw() -> None:
    """A vector that comes out alike without its option shows nothing."""
    named = {case["name"] for case in CONTENT["draws"]}
    assert named - WHOLE == {
        "logit_bias",
        "repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
        "bad_words",
        "token mask",
        "min_tokens",
        "temperature",
        "min_p",
        "top_k",
        "top_p",
    }
    for name in named - WHOLE:
        cases = [case for case in CONTENT["draws"] if case["name"] == name]
        plain = [{**case, "options": {"seed": case["options"]["seed"]}, "mask": None} for case in cases]
        changed = [
            reference.adjusted(case) != reference.adjusted(bare)
            or case["token"] != reference.draw(bare)
            or case["kept"] != sorted(reference.filtered(reference.adjusted(bare), bare["options"]))
            for case, bare in zip(cases, plain, strict=True)
        ]
        assert sum(changed) >= len(cases) // 3, name


def test_the_page_has_the_stages_in_order() -> None:
    places = [
        PAGE.index(f"─► {stage}")
        for stage in (
            "logit_bias", "repetition_penalty", "frequency_penalty", "presence_penalty", "bad_words", "token mask",
            "min_tokens", "temperature", "min_p", "top_k", "top_p", "+ noise", "argmax",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    assert len(STAGES) == 7
    assert f"**version {DRAW_VERSION}**" in PAGE
