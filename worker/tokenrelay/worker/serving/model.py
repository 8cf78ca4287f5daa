"""The served model: its engine, and the reader of its prompts."""

from __future__ import annotations

import gc
import json
import logging
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenrelay.worker.engine.factory import load_engine
from tokenrelay.worker.models import weather_model_path
from tokenrelay.worker.sampling.grammar.compiler import GrammarCompiler
from tokenrelay.worker.sampling.grammar.token_bytes import UnknownBytes, read_vocabulary
from tokenrelay.worker.serving.prompts import PromptReader
from tokenrelay.worker.serving.served_name import served_name
from tokenrelay.worker.text.template import tool_parser_of
from tokenrelay.worker.training.report.trace import TRACE_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenrelay.shared.settings import WorkerSettings
    from tokenrelay.worker.engine.contract import Engine, LoadedEngine
    from tokenrelay.worker.engine.factory import EngineName

log = logging.getLogger(__name__)

SWITCH_S = 0.0005
"""How long a thread may hold the interpreter while another waits for it."""
GC_THRESHOLDS = (5_000, 500, 100)
"""A collection of 5,000 young objects takes 0.2 ms; survivors are collected after 2.5 million, in up to 140 ms."""


@dataclass(frozen=True, slots=True)
class Served:
    """A prepared engine and the reader of its model's prompts."""

    engine: Engine
    reader: PromptReader
    training: str | None = None
    """The training trace as JSON, if the model's folder holds one."""

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The model's own defaults for options that a request omits."""
        return self.reader.defaults


def serve(settings: WorkerSettings, engine_name: EngineName = "transformers") -> Served:
    """Load the model and prepare its engine. Raises ModelError, SettingsError."""
    name, began = served_name(settings), time.monotonic()
    loaded = load_engine(engine_name, settings.model_path or str(weather_model_path()), settings)
    try:
        loaded.engine.prepare()
    except BaseException:
        loaded.engine.stop()  # its thread would keep the process alive
        raise
    tune_interpreter()
    capabilities = loaded.engine.capabilities
    log.info("model %s is ready on %s after %.1f s", name, capabilities.device, time.monotonic() - began)
    defaults = loaded.defaults if settings.generation_config == "auto" else {}
    grammars = _grammars(loaded)
    if grammars is None:
        capabilities = replace(capabilities, options=capabilities.options - {"response_format"})
    reader = PromptReader.of(loaded.tokenizer, name, loaded.fingerprint, capabilities, defaults)
    reader = replace(reader, grammars=grammars, eos_token_ids=loaded.eos_token_ids)
    reader = _with_tools(reader, settings.tool_parser)
    if defaults:
        shown = ", ".join(f"{option} {value}" for option, value in defaults.items())
        log.info("the model's own defaults apply: %s; TOKENRELAY_GENERATION_CONFIG=none turns them off", shown)
    return Served(loaded.engine, reader, training_trace(settings.model_path))


def _with_tools(reader: PromptReader, given: str) -> PromptReader:
    """The reader for requests with tools, where the model's format of calls is known."""
    tool_parser = tool_parser_of(reader.encoder) if given == "auto" else None if given == "none" else given
    log.info("calls of tools are read by the parser %s", tool_parser or "none: requests with tools are refused")
    if tool_parser is None:
        return reader
    capabilities = replace(reader.capabilities, options=reader.capabilities.options | {"tools"})
    return replace(reader, tool_parser=tool_parser, capabilities=capabilities)


def _grammars(loaded: LoadedEngine) -> GrammarCompiler | None:
    """The compiler of grammars for the model's vocabulary; None where its answers can't be masked."""
    capabilities = loaded.engine.capabilities
    if "response_format" not in capabilities.options:
        return None
    try:
        vocabulary = read_vocabulary(loaded.tokenizer, capabilities.vocabulary, loaded.eos_token_ids)
    except UnknownBytes as error:
        log.info("requests with a response_format are left to other workers, for this model's tokenizer: %s", error)
        return None
    return GrammarCompiler(vocabulary)


def training_trace(model_path: str | None) -> str | None:
    """The trace that `tokenrelay-worker train` wrote beside the weights; None for other models and those of the Hub."""
    file = Path(model_path or weather_model_path()) / TRACE_FILE
    try:
        return json.dumps(json.loads(file.read_text("utf-8")))
    except (OSError, ValueError):
        return None


def tune_interpreter() -> None:
    """Tune Python for an engine and a publisher in one process; once, when everything is loaded.

    What was loaded, a million permanent objects, is excluded from garbage collection: a full one would traverse all of
    it and stop every thread for 80 to 250 ms. Tokens in flight are hundreds of thousands of objects more, without
    cycles: young ones are collected a few at a time, old ones rarely. A thread that waits for the interpreter gets it
    after 0.5 ms instead of 5: the engine's needs it after every operation.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_S)
