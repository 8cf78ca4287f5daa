"""`train`: from settings to a model folder, with transformers' Trainer.

Owns the optimisation and its schedule; the corpus, its encoding and the evaluation have modules of their own.
Prints nothing: progress goes to the caller's `report`.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from tokenrelay.worker.training.corpus import FIXED_QUESTION, weather_corpus
from tokenrelay.worker.training.evaluation import Score, greedy_answer, measure
from tokenrelay.worker.training.jsonl import read_conversations, split
from tokenrelay.worker.training.report.curve import write_curve
from tokenrelay.worker.training.report.trace import CURVE_FILE, TRACE_FILE, EpochTrace, StepDone, TrainingTrace, observe
from tokenrelay.worker.training.weights import load_model, new_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transformers import PreTrainedModel, TrainerControl, TrainerState

    from tokenrelay.worker.training.conversation import Corpus
    from tokenrelay.worker.training.encoding import Encoder, Example
    from tokenrelay.worker.training.settings import TrainingSettings


_WARM_UP = 0.3
# Parameters below which one thread is used: a second one gains little there, and where another process wants its core
# the two wait for each other (measured: 1.0 s a step instead of 0.18 s).
_SMALL = 10_000_000


def train(settings: TrainingSettings, *, out: Path, report: Callable[[StepDone | EpochTrace], None]) -> TrainingTrace:
    """Train as `settings` say and write the model, its tokenizer, trace.json and curve.svg into `out`.

    `report` gets each step and each epoch as it is done. Seeds the process's random generators: the same settings on
    the same machine give the same weights. Raises TrainingError (TrainingDataError for the data).
    """
    started_s = time.process_time()
    corpus = _corpus(settings)
    set_seed(settings.seed)
    with _no_progress_bars():
        model, encoder = load_model(settings.model) if settings.model else new_model(corpus.train)
    question = corpus.held_out[0].questions[0] if settings.data else FIXED_QUESTION
    monitor = _Monitor(model, encoder, encoder.encode_all(corpus.held_out), question, report)
    with _threads(1 if model.num_parameters() < _SMALL else torch.get_num_threads()):
        _fit(encoder.encode_all(corpus.train), settings, monitor)
    trace = TrainingTrace(
        seed=settings.seed,
        data=str(settings.data or "the bundled corpus"),
        model=settings.model or "the weather-talk model",
        parameters=model.num_parameters(),
        vocabulary=len(encoder.tokenizer),
        train_conversations=len(corpus.train),
        held_out_conversations=len(corpus.held_out),
        held_out_answer_tokens=monitor.before.tokens,
        loss_before=monitor.before.loss,
        accuracy_before=monitor.before.accuracy,
        question=question,
        epochs=tuple(monitor.epochs),
        seconds=round(time.process_time() - started_s, 1),
    )
    with _no_progress_bars():
        _write(model, encoder, trace, out)
    return trace


class _Monitor(TrainerCallback):
    """Reports the Trainer's steps, and evaluates the model before the first epoch and after each."""

    before: Score

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: Encoder,
        held_out: list[Example],
        question: str,
        report: Callable[[StepDone | EpochTrace], None],
    ) -> None:
        self.epochs: list[EpochTrace] = []
        self.model = model
        self.encoder = encoder
        self._held_out = held_out
        self._question = question
        self._report = report

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        self.before = self._last = self._measure()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._report(StepDone(state.global_step, state.max_steps))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        # The Trainer logs a loss once an epoch (logging_strategy), and a summary without it at the end.
        logs = state.log_history[-1]
        if "loss" not in logs:
            return
        score, last, train_loss = self._measure(), self._last, float(logs["loss"])
        epoch = EpochTrace(
            epoch=len(self.epochs) + 1,
            train_loss=train_loss,
            loss=score.loss,
            accuracy=score.accuracy,
            observation=observe(score.loss, score.accuracy, last.loss, last.accuracy, train_loss),
            answer=greedy_answer(self.model, self.encoder, self._question),
        )
        self._last = score
        self.epochs.append(epoch)
        self._report(epoch)

    def _measure(self) -> Score:
        return measure(self.model, self.encoder, self._held_out)


def _corpus(settings: TrainingSettings) -> Corpus:
    if settings.data is None:
        return weather_corpus()
    return split(read_conversations(settings.data), str(settings.data))


def _fit(examples: list[Example], settings: TrainingSettings, monitor: _Monitor) -> None:
    steps = settings.epochs * math.ceil(len(examples) / settings.batch_size)
    optimizer = AdamW(monitor.model.parameters(), lr=settings.peak_learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    with TemporaryDirectory(prefix="tokenrelay-train-") as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            seed=settings.seed,
            use_cpu=settings.device == "cpu",
            train_sampling_strategy="group_by_length",
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=settings.device == "cuda",
            remove_unused_columns=False,
        )
        trainer = Trainer(
            model=monitor.model,
            args=arguments,
            train_dataset=examples,
            data_collator=monitor.encoder.collate,
            callbacks=[monitor],
            optimizers=(optimizer, LambdaLR(optimizer, lambda step: _rate(step / steps))),
        )
        # With tqdm off the Trainer prints its logs instead.
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _rate(progress: float) -> float:
    """The share of the peak learning rate at `progress` (0 to 1): a slow start, so that learning shows, then a cosine.

    The usual linear warm-up leaves the first epoch with little to learn, or the last ones with too little time.
    """
    if progress < _WARM_UP:
        return (progress / _WARM_UP) ** 2
    return 0.5 + 0.5 * math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep transformers' own bars for loading and saving off the caller's console."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _write(model: PreTrainedModel, encoder: Encoder, trace: TrainingTrace, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.train(False)
    model.save_pretrained(out)
    encoder.tokenizer.save_pretrained(out, save_jinja_files=False)
    trace.write(out / TRACE_FILE)
    write_curve(trace, out / CURVE_FILE)
