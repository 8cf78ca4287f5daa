"""`python -m benchmarks.tuning`: the manager's public options, one at a time, on the engine alone. For docs/adr/0009.

Variants run in turns within each round, each on its own engine, so that a slower machine affects all equally.
"""

from __future__ import annotations

import argparse
import statistics
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table
from transformers import ContinuousBatchingConfig

from benchmarks.contenders import KV_CACHE_TOKENS, SLOTS
from benchmarks.engine_alone import EngineAlone
from benchmarks.waves import Wave, prompt_of
from tokenrelay.worker.engine.transformers import batching
from tokenrelay.worker.engine.transformers.batching import TransformersEngine
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.engine.transformers.models import load_model

if TYPE_CHECKING:
    from benchmarks.waves import Outcome
    from tokenrelay.worker.engine.transformers.models import LoadedModel

VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "as it ships": {},
    "scheduler: prefill first": {"scheduler_type": "prefill_first"},
    "no block sharing": {"allow_block_sharing": False},
    "pages of 16 tokens": {"page_size": 16, "num_blocks": KV_CACHE_TOKENS // 16},
    "pages of 128 tokens": {"page_size": 128, "num_blocks": KV_CACHE_TOKENS // 128},
    "128 tokens a step": {"max_batch_tokens": 128},
    "256 tokens a step": {"max_batch_tokens": 256},
    "1,024 tokens a step": {"max_batch_tokens": 1024},
    "2,048 tokens a step": {"max_batch_tokens": 2048},
    "asynchronous batching": {"use_async_batching": True},
}

_CONFIGURATION: Final = ContinuousBatchingConfig.__name__


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning")
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=40)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--only", action="append", default=[], help="part of an option's name; repeatable")
    chosen = parser.parse_args()
    variants = {
        name: switches
        for name, switches in VARIANTS.items()
        if not (switches and chosen.only) or any(part in name for part in chosen.only)
    }
    loaded = load_model(chosen.model, dtype=chosen.dtype)
    found: dict[str, list[Outcome]] = {name: [] for name in variants}
    failed: dict[str, str] = {}
    for number in range(chosen.rounds):
        prompts = tuple(prompt_of(loaded.tokenizer, chosen.prompt_tokens, number * 100 + each) for each in range(SLOTS))
        for name in variants:
            if name in failed:
                continue
            try:
                found[name].append(measured(loaded, variants[name], Wave(prompts, chosen.new_tokens, 0.0, number)))
            except Exception as error:  # noqa: BLE001  a switch that this device lacks is a result, too
                failed[name] = f"{type(error).__name__}: {error}"
    show(found, failed)


def measured(loaded: LoadedModel, switches: dict[str, Any], wave: Wave) -> Outcome:
    """Run one wave on an engine with these manager options."""
    module = vars(batching)
    module[_CONFIGURATION] = lambda **given: ContinuousBatchingConfig(**{**given, **switches})
    try:
        engine = TransformersEngine(loaded, EngineSettings(SLOTS, KV_CACHE_TOKENS))
    finally:
        module[_CONFIGURATION] = ContinuousBatchingConfig
    try:
        engine.prepare()
        return EngineAlone(engine, loaded.tokenizer).run(wave)
    finally:
        engine.stop()


def show(found: dict[str, list[Outcome]], failed: dict[str, str]) -> None:
    table = Table("switch", "tokens/s", "÷ as it ships", "TTFT p50, ms", "what stood in the way")
    ships = found["as it ships"]
    for name, outcomes in found.items():
        if not outcomes:
            table.add_row(name, "", "", "", failed[name])
            continue
        ratios = [outcome.rate / base.rate for outcome, base in zip(outcomes, ships, strict=False)]
        rate = statistics.median(outcome.rate for outcome in outcomes)
        ttft_ms = statistics.median(outcome.ttft_ms for outcome in outcomes)
        table.add_row(name, f"{rate:.0f}", f"{statistics.median(ratios):.2f}", f"{ttft_ms:,.0f}", failed.get(name, ""))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
