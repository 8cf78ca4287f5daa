"""What the nursery's children run: the product's own child, and doubles of its engine for what only they can show."""

from __future__ import annotations

import logging
import os
import signal
import time
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from tokenrelay.worker.engine.contract import EngineOutput

KIND: Final = "CHILD_KIND"
POISON_WORD: Final = "snowman"
POISON_LENGTH: Final = 12
"""A prompt of this word so often in a row takes the process down when the model reads it."""
POISON_SEEN: Final = 4
"""So many of them in one step are enough: a prefill may be cut in two where many others are prefilled with it."""
NAN_WORD: Final = "umbrella"
"""As often in a row, its hidden states are NaN."""
INVALID_SEED: Final = 666_666
"""From its fifth token on, a request with this seed has no finite logit."""
INVALID_FROM: Final = 5
SLOW_WORD: Final = "mountains"
"""A step that prefills it takes SLOW_STEP_S longer."""
SLOW_STEP_S: Final = 0.5
MARK: Final = 500
"""The `marked-high` engine's tokens are MARK and above, those of `marked-low` below it."""
STEP_S: Final = 0.02
FUSSY: Final = "fussy"
"""A counting engine's child whose tokenizer raises at one token."""


def run_child(report_fd: int, tether_fd: int) -> int:
    """The exit code of a child of the kind that the environment asks for."""
    kind = os.environ.get(KIND, "weather")
    arguments = ["--report-fd", str(report_fd), "--tether-fd", str(tether_fd)]
    try:
        if kind == "weather":
            _weather(arguments)
        else:
            _counting(kind, report_fd, tether_fd)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001  a forked process ends here, whatever it was
        traceback.print_exc()
        return 1
    return 0


def _weather(arguments: list[str]) -> None:
    """The product's own child. SIGUSR1 makes the model's next step raise; a poisoned prompt is a segfault, and some
    requests are sick or slow."""
    from tokenrelay.worker.supervisor import child

    _arm()
    child.main(arguments)


def _arm() -> None:
    import torch
    from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

    from tokenrelay.worker.engine.transformers.models import load_model
    from tokenrelay.worker.models import weather_model_path

    failing = False

    def fail(number: int, frame: object) -> None:
        nonlocal failing
        failing = True

    signal.signal(signal.SIGUSR1, fail)
    model_path = os.environ.get("TOKENRELAY_MODEL_PATH") or weather_model_path()
    vocabulary = load_model(model_path, device="cpu", dtype="float32").tokenizer.get_vocab()
    # As the words are tokens where a space is before them.
    poison, slow, nan = (vocabulary[f"Ġ{word}"] for word in (POISON_WORD, SLOW_WORD, NAN_WORD))

    def look(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        if failing:
            raise RuntimeError("a step failed, as it was told to")
        if isinstance(module, torch.nn.Embedding) and isinstance(arguments[0], torch.Tensor):
            ids = arguments[0].flatten()
            if _runs(ids, poison):
                os.kill(os.getpid(), signal.SIGKILL)
            if _runs(ids, slow):
                time.sleep(SLOW_STEP_S)

    register_module_forward_pre_hook(look)
    register_module_forward_hook(spoiler(nan), with_kwargs=True)


def _runs(ids: torch.Tensor, word: int) -> list[int]:
    """Where POISON_SEEN of the word begin."""
    if len(ids) < POISON_SEEN:
        return []
    found: list[int] = ids.eq(word).unfold(0, POISON_SEEN, 1).all(-1).nonzero().flatten().tolist()
    return found


def spoiler(nan_word: int) -> Callable[..., None]:
    """A hook behind every module, for what the sick requests are sick of."""
    import torch

    from tokenrelay.worker.sampling.sampler import noise_key

    keys = [noise_key(INVALID_SEED, position) & 0xFFFFFFFF for position in range(INVALID_FROM, 200)]
    invalid = torch.tensor(keys).to(torch.int32)

    def spoil(module: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if isinstance(module, torch.nn.Embedding) and isinstance(arguments[0], torch.Tensor):
            # Neither a run's first nor its last: those may be the latest tokens of requests beside it in the step.
            for begin in _runs(arguments[0].flatten(), nan_word):
                output.view(-1, output.shape[-1])[begin + 1 : begin + POISON_SEEN - 1] = torch.nan
        elif "logits_processor_args" in named and hasattr(output, "logits"):
            drawn = named["logits_processor_args"][0][: output.logits.shape[1]]
            output.logits[0, torch.isin(drawn, invalid)] = -torch.inf

    return spoil


def _counting(kind: str, report_fd: int, tether_fd: int) -> None:
    from tests.engines import CountingEngine
    from tests.integration.test_worker_faults import fussy, raising
    from tests.workers import VOCABULARY, served
    from tokenrelay.shared.settings import WorkerSettings
    from tokenrelay.worker.engine.contract import EngineOutput
    from tokenrelay.worker.supervisor.pipes import Tether, report_regularly
    from tokenrelay.worker.worker import Worker

    class Marked(CountingEngine):
        """Steps by the clock, like a GPU that keeps computing: after a freeze it's ahead of its successor."""

        def step(self) -> list[EngineOutput]:
            self.await_requests()
            begin = time.monotonic()
            time.sleep(STEP_S)
            given: list[EngineOutput] = []
            for _ in range(int((time.monotonic() - begin) / STEP_S)):
                given += self.advance()
            return [marked(engine_id, [o for o in given if o.engine_id == engine_id]) for engine_id in _ids(given)]

    def marked(engine_id: str, outputs: list[EngineOutput]) -> EngineOutput:
        mark = MARK if kind == "marked-high" else 0
        token_ids = tuple(token_id + mark for output in outputs for token_id in output.token_ids)
        return EngineOutput(engine_id, token_ids, outputs[-1].finish_reason)

    logging.basicConfig(level=logging.INFO)
    settings = WorkerSettings.from_environment()
    if kind == FUSSY:
        tokenizer = fussy(at_decode=raising(IndexError("piece id is out of range")))
        made = served(
            CountingEngine(vocabulary=VOCABULARY, slots=settings.slots, step_delay_s=STEP_S), "fussy", tokenizer
        )
    else:
        engine = Marked(vocabulary=MARK, slots=32)
        engine.capabilities = replace(engine.capabilities, vocabulary=VOCABULARY + 1)  # the tokenizer's
        made = served(engine)
    worker = Worker(settings, made)
    report_regularly(report_fd, worker.threads.progress, settings.heartbeat_ms / 1000)
    Tether(tether_fd).hand_over(worker.hand_back)
    worker.handle_signals()
    worker.work()


def _ids(outputs: list[EngineOutput]) -> list[str]:
    return list(dict.fromkeys(output.engine_id for output in outputs))
