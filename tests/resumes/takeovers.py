"""Attempts on the default engine, from a granted claim to the end, as a worker makes them; in place of Redis a list.

Cuts fall where the caller wants them, which no killed process can promise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.store.jobs import Execution
from tokenrelay.shared.store.replies import Granted
from tokenrelay.worker.core.attempts import Attempt, Claimed, engine_request
from tokenrelay.worker.engine.output_queue import OutputQueue
from tokenrelay.worker.engine.transformers.batching import TransformersEngine
from tokenrelay.worker.engine.transformers.kv_cache import EngineSettings
from tokenrelay.worker.intake.resuming import resumed
from tokenrelay.worker.sampling.grammar.compiler import GrammarCompiler, outcome
from tokenrelay.worker.sampling.grammar.token_bytes import read_vocabulary
from tokenrelay.worker.serving.prompts import PromptReader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from tests.resumes.requests import Asked
    from tokenrelay.shared.store.requests import WrittenToken
    from tokenrelay.worker.core.attempts import Ending
    from tokenrelay.worker.engine.transformers.models import LoadedModel

SLOTS: Final = 16
WAIT_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a stream holds in the end."""

    tokens: tuple[WrittenToken, ...]
    ending: Ending
    drew_end: bool
    """Whether a draw behind the last token ended it."""

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(token[1] for token in self.tokens)

    @property
    def pieces(self) -> tuple[tuple[str, int], ...]:
        """The tokens without their log-probabilities."""
        return tuple((token[0], token[1]) for token in self.tokens)

    @property
    def text(self) -> str:
        return "".join(token[0] for token in self.tokens) + self.ending.text


class Worker:
    """An engine and the reader of its model's requests."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._engine, self._queue = TransformersEngine(loaded, EngineSettings(slots=SLOTS)), OutputQueue()
        capabilities = self._engine.capabilities
        vocabulary = read_vocabulary(loaded.tokenizer, capabilities.vocabulary, loaded.eos_token_ids)
        reader = PromptReader.of(loaded.tokenizer, "model", loaded.fingerprint, capabilities)
        self.reader = replace(reader, grammars=GrammarCompiler(vocabulary))
        self._fences = count(1)

    def __enter__(self) -> Self:
        self._engine.start(self._queue.deliver)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.stop()
        self.reader.close()

    def claim(self, asked: Asked, emitted: Sequence[WrittenToken] = ()) -> Claimed:
        """A claim of the request behind the tokens of earlier attempts, read from what a stream holds."""
        fence = f"{asked.name}/{next(self._fences)}"
        granted = Granted(
            fence,
            attempt=1 + bool(emitted),
            next_index=len(emitted) + 1,
            crashes=0,
            deadline_us=0,
            prompt_ids=json.dumps(asked.prompt_ids).encode(),
            emitted=tuple(part for token in emitted for part in (str(token[1]).encode(), token[0].encode())),
            logprobs=tuple(token[2] for token in emitted if len(token) > 2),
        )
        claimed = Claimed(Execution(fence, "queue"), fence, granted.attempt, retention_s=1)
        compilation = self.reader.grammar(asked.submission)
        grammar = None if compilation is None else outcome(compilation)
        return resumed(claimed, granted, self.reader, asked.submission, grammar)

    def generate(self, claims: Sequence[Claimed]) -> list[Answer]:
        """The answers, all in one company."""
        attempts = {claimed.fence: Attempt.begin(claimed) for claimed in claims}
        left = {claimed.fence for claimed in claims if claimed.work is not None}
        drew_end: set[str] = set()
        for claimed in claims:
            if claimed.work is not None:
                self._engine.add(engine_request(attempts[claimed.fence], claimed.work))
        while left:
            for output in self._queue.get(WAIT_S):
                attempt = attempts[output.engine_id]
                if attempt.ending is None:
                    attempt.receive(output)
                    if output.finish_reason == "stop" and attempt.ending and not _stopped_by_text(attempt):
                        drew_end.add(output.engine_id)
                if attempt.ending is not None and output.engine_id in left:
                    left.discard(output.engine_id)
                    self._engine.cancel(output.engine_id)
        return [_answer(attempts[claimed.fence], claimed.fence in drew_end) for claimed in claims]


def _stopped_by_text(attempt: Attempt) -> bool:
    return attempt.text is not None and attempt.text.stopped


def _answer(attempt: Attempt, drew_end: bool) -> Answer:
    assert attempt.ending is not None
    return Answer(tuple(attempt.tokens), attempt.ending, drew_end)
