"""`make families`: serve a tiny random folder of every causal architecture, and write docs/models.md.

Each runs in its own process, so that a crash or a hang is an ordinary result. The command fails if a served family has
wrong answers.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from tests.families.folders import tiny_config, write_folder
from tests.families.page import write_page
from tests.families.serving import Outcome, try_folder
from tests.families.variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT_S: Final = 120
MEMORY_BYTES: Final = 16 << 30
PAGE: Final = Path(__file__).parents[2] / "docs" / "models.md"


def try_architecture(name: str) -> Outcome:
    """A folder made, served and judged."""
    model_type, changes = VARIANTS.get(name, (name, {}))
    with tempfile.TemporaryDirectory() as parent:
        try:
            folder = write_folder(Path(parent) / "model", tiny_config(model_type, **changes))
        except Exception as error:  # noqa: BLE001  the architecture's own code, which may raise anything
            return Outcome(name, unbuilt=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return try_folder(folder, name)


def run_apart(name: str) -> Outcome:
    """`try_architecture` in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(TIMEOUT_S)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        torch.set_num_threads(1)
        code = 1
        try:
            os.write(writing, json.dumps(asdict(try_architecture(name))).encode())
            code = 0
        except BaseException:  # noqa: BLE001  the child must not go on as its parent
            traceback.print_exc()
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if not said:
        return Outcome(name, note=f"the process ended with {os.waitstatus_to_exitcode(status)}")
    return Outcome(**json.loads(said))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures or variants; all of them where none is given")
    parser.add_argument("--results", type=Path, help="JSON lines: those there are kept, new ones are added")
    given = parser.parse_args(arguments)
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
    known = _known(given.results)
    for name in given.names or [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS]:
        if name in known and not given.names:
            continue
        outcome = known[name] = run_apart(name)
        sys.stdout.write(f"{name}: {outcome.word} {outcome.refused or outcome.unbuilt or outcome.note}\n")
        sys.stdout.flush()
        if given.results is not None:
            with given.results.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
    counts = Counter(outcome.word for outcome in known.values())
    sys.stdout.write(f"families: {', '.join(f'{count} {word}' for word, count in sorted(counts.items()))}\n")
    if not given.names:
        write_page(PAGE, known.values())
    return any(outcome.word == "wrong" for outcome in known.values())


def _known(results: Path | None) -> dict[str, Outcome]:
    if results is None or not results.exists():
        return {}
    outcomes = [Outcome(**json.loads(line)) for line in results.read_text().splitlines()]
    return {outcome.architecture: outcome for outcome in outcomes}


if __name__ == "__main__":
    sys.exit(main())
