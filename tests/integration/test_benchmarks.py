"""The benchmark runs: its quick form, which is worth no figure."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks import draw_step, pacing, plane, profile
from benchmarks.__main__ import PAGE, SUITES
from benchmarks.contenders import serve_is_installed
from benchmarks.options import BenchOptions
from benchmarks.report import Measurement, print_tables, refresh_page, write_json, write_png
from benchmarks.throughput import QUICK, RELAY, SERVE, SHAPES, chosen_shapes
from benchmarks.waves import prompt_of
from tests.workers import word_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


def quick(folder: Path) -> BenchOptions:
    return BenchOptions(model="", dtype="float32", rounds=1, quick=True, serve_python="", vllm_python="", folder=folder)


def test_the_token_plane_is_measured(tmp_path: Path) -> None:
    measurements = {figure.name: figure for figure in plane.measure(quick(tmp_path))}
    assert all(figure.median > 0 for figure in measurements.values())
    assert measurements["a token in Redis"].verdict == "met"


def test_the_pace_is_measured(tmp_path: Path) -> None:
    engine = pacing.paced_alone(pacing.Pace(streams=3, tokens=5, steps_a_second=200.0))
    assert len(engine.late_s) == len(engine.stepped_at) == 5
    assert min(engine.late_s) >= 0


def test_prompts_have_their_length() -> None:
    tokenizer = word_tokenizer()
    prompts = {prompt_of(tokenizer, 40, seed) for seed in range(8)}
    assert len(prompts) == 8
    assert {len(tokenizer(prompt)["input_ids"]) for prompt in prompts} == {40}


def test_what_was_found_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measurements = [
        Measurement("g", "ours", "tokens/s", (3.0, 1.0, 2.0), "≥", 1.5, "a note"),
        Measurement("g", "slow", "ms", (9.0,), "≤", 2.0),
        Measurement("g", "longest", "ms", (3.0, 60.0, 4.0), "≤", 50.0, judged_by="worst"),
        Measurement("g", "least", "×", (3.0, 0.5, 4.0), "≥", 1.0, judged_by="worst"),
    ]
    page = tmp_path / "page.md"
    page.write_text("# Page\n<!-- bench: g -->\nold\n<!-- end -->\n<!-- bench: other -->\nkept\n<!-- end -->\n")
    print_tables(measurements)
    write_json(tmp_path / "results.json", measurements, {"when": "today"})
    write_png(tmp_path / "rates.png", measurements)
    refresh_page(page, measurements, {"when": "today"})
    assert "ours" in capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text())["figures"]
    assert [(row["judged"], row["verdict"]) for row in found] == [
        (2.0, "met"), (9.0, "missed"), (60.0, "missed"), (0.5, "missed"),
    ]  # fmt: skip
    assert (tmp_path / "rates.png").stat().st_size > 1000
    assert "| ours | 2.00 | tokens/s | 1.00 – 3.00 | ≥ 1.50 | met | a note |" in page.read_text()
    assert "| longest | worst 60.0 | ms | 3.00 – 60.0 | ≤ 50.0 | missed |" in page.read_text()
    assert "old" not in page.read_text()
    assert "kept" in page.read_text()


def suite_groups() -> set[str]:
    """The tables of all suites but `throughput`, whose loads name them."""
    modules = [SUITES[name].__globals__ for name in SUITES]
    return {group for module in modules for group in module.get("GROUPS", (module.get("GROUP", ""),)) if group}


def test_the_page_has_a_place_for_every_table() -> None:
    text = PAGE.read_text("utf-8")
    groups = {shape.group for shape in SHAPES} | suite_groups()
    assert [group for group in groups if f"<!-- bench: {group} -->" not in text] == []


def test_loads_are_chosen_by_their_name() -> None:
    sampled = chosen_shapes(["sampled", "1 at once"], quick=False)
    assert [shape.group for shape in sampled] == [
        "1 at once, prompts of 40, greedy",
        "32 at once, prompts of 40, sampled",
        "32 at once, prompts of 256, sampled",
    ]
    assert chosen_shapes([], quick=False) == SHAPES
    with pytest.raises(ValueError, match="'64 at' is in none of: 1 at once"):
        chosen_shapes(["sampled", "64 at"], quick=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_suite_runs_and_writes_what_it_found(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--dtype", "float32", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=PAGE.parents[1], capture_output=True, text=True, timeout=590, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    measurements = json.loads((tmp_path / "results.json").read_text("utf-8"))["figures"]
    found = {(figure["group"], figure["name"]) for figure in measurements}
    (shape,) = QUICK
    named = {name for name in shape.against if name != SERVE or serve_is_installed(sys.executable)}
    assert {name for group, name in found if group == shape.group} == {
        RELAY, *named, *(f"{RELAY} ÷ {name}" for name in named),
    }  # fmt: skip
    assert {shape.group, *suite_groups()} == {group for group, _ in found}
    assert all(math.isfinite(value) for figure in measurements for value in figure["values"])
    assert all(figure["median"] > 0 for figure in measurements if figure["unit"].endswith("/s"))
    for picture in ("throughput.png", "growth.png"):
        assert (tmp_path / picture).stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_step_is_profiled_part_by_part() -> None:
    # In a process of its own: it marks the attention of every model in the process.
    command = [sys.executable, "-m", "benchmarks.profile", "--steps", "1"]
    done = subprocess.run(command, cwd=PAGE.parents[1], capture_output=True, text=True, timeout=590, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^│ (\S.*?) +│ ([\d.]+)% ", done.stdout, re.MULTILINE)
    found = {part: float(share) for part, share in rows}
    assert tuple(found) == profile.PARTS
    assert sum(found.values()) == pytest.approx(100, abs=0.5)
    assert all(found[part] > 0 for part in (profile.MATRICES, profile.KERNEL, profile.SAMPLING, profile.CACHE))


def test_the_draws_step_is_measured() -> None:
    figures = draw_step.measure(draw_step.Shape(rows=2, vocabulary=64, prompt_tokens=3, answer_tokens=3), 1, 1.0)
    assert [figure.name for figure in figures] == ["bare", *draw_step.OPTIONS]
    assert all(figure.cpu_us > 0 for figure in figures)
