"""`python -m benchmarks`: run the suites, print the results and write them to files."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import (
    asked,
    calls,
    footprint,
    grammar_steps,
    growth,
    growth_memory,
    growth_model,
    http,
    pacing,
    plane,
    throughput,
)
from benchmarks.options import BenchOptions
from benchmarks.report import print_tables, refresh_page, write_growth_png, write_json, write_png
from tokenrelay.worker.models import weather_model_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.report import Measurement

PAGE: Final = Path(__file__).parents[1] / "docs" / "performance.md"
SUITES: Final[dict[str, Callable[[BenchOptions], Iterator[Measurement]]]] = {
    "throughput": throughput.measure,
    "asked": asked.measure,
    "plane": plane.measure,
    "pacing": pacing.measure,
    "calls": calls.measure,
    "grammars": grammar_steps.measure,
    "http": http.measure,
    "footprint": footprint.measure,
    "growth": growth.measure,
    "growth-memory": growth_memory.measure,
    "growth-model": growth_model.measure,
}


WITH_MODEL: Final = ("throughput", "asked", "grammars", "http", "growth-model")
"""Suites that use `--model`; the others use the bundled model, or none."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--model", help="model folder; default: the bundled weather model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=SUITES, action="append", help="run only this suite; repeatable")
    parser.add_argument(
        "--shape",
        metavar="TEXT",
        action="append",
        default=[],
        help="only loads of `throughput` whose name contains this; repeatable",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds per suite, to check that it runs; the results mean nothing"
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for results.json and the PNG")
    parser.add_argument("--serve-python", default=sys.executable, help="a Python with transformers[serving]")
    parser.add_argument("--vllm-python", default=sys.executable, help="a Python with vllm")
    parser.add_argument("--page", action="store_true", help="also update the tables in docs/performance.md")
    arguments = parser.parse_args()
    try:
        throughput.chosen_shapes(arguments.shape, quick=arguments.quick)
    except ValueError as error:
        parser.error(str(error))
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        options = BenchOptions(
            model=arguments.model or str(weather_model_path()),
            dtype=arguments.dtype,
            rounds=1 if arguments.quick else arguments.rounds,
            quick=arguments.quick,
            serve_python=arguments.serve_python,
            vllm_python=arguments.vllm_python,
            folder=Path(folder),
            shapes=tuple(arguments.shape),
        )
        measurements, measured_under = run(options, arguments.only or list(SUITES)), conditions(options)
    print_tables(measurements)
    for name, value in measured_under.items():
        print(f"{name}: {value}")
    write_json(arguments.out / "results.json", measurements, measured_under)
    write_png(arguments.out / "throughput.png", measurements)
    write_growth_png(arguments.out / "growth.png", measurements)
    if arguments.page:
        refresh_page(PAGE, measurements, measured_under)


def run(options: BenchOptions, suites: list[str]) -> list[Measurement]:
    measurements = []
    for suite in suites:
        print(f"{suite}: {SUITES[suite].__module__}", file=sys.stderr)
        for figure in (replace(figure, modelled=suite in WITH_MODEL) for figure in SUITES[suite](options)):
            print(f"  {figure.group}: {' '.join(figure.cells())}", file=sys.stderr)
            measurements.append(figure)
    return measurements


def conditions(options: BenchOptions) -> dict[str, str]:
    import torch  # after the suites, which measure in separate processes

    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d"),
        "model": f"{Path(options.model).name}, {options.dtype}",
        "rounds": f"{options.rounds} round{'s' * (options.rounds > 1)}",
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()} with {torch.backends.cpu.get_cpu_capability()}, "
        f"no GPU used, load average at the end {load}",
        "software": ", ".join(
            f"{name} {version(name)}" for name in ("torch", "transformers", "redis", "rq", "tokenrelay")
        ),
    }


if __name__ == "__main__":
    main()
