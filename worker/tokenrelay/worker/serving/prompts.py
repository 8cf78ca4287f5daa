"""Reading requests for one model: prompts to token IDs, budgets, and the text of an answer."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, cast

from tokenrelay.shared.answers.parser import Formats
from tokenrelay.shared.errors import RequestError
from tokenrelay.shared.options import DEFAULTS, filled
from tokenrelay.worker.sampling.grammar.calls import FORMATS, calls_grammar
from tokenrelay.worker.sampling.grammar.grammar import Grammar
from tokenrelay.worker.serving.limits import check_ids, token_budget
from tokenrelay.worker.serving.token_writer import token_writer
from tokenrelay.worker.text import Detokenizer, EndRules, Rendering, TokenText, bad_word_ids, encode_prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from tokenrelay.shared.options import Submission
    from tokenrelay.worker.engine.contract import Capabilities
    from tokenrelay.worker.sampling.grammar.compiler import Compilation, GrammarCompiler

MAX_PROMPT_TEXTS: Final = 64
"""Of longer prompts only the token IDs are stored: the texts of their tokens are for people to read."""
_NO_GRAMMAR: Final = (
    "tool_choice: needs a grammar, which this model's format of calls doesn't have here: give tool_choice auto, "
    "parallel_tool_calls true and no strict tool"
)
_TEXTS_KEPT: Final = 32_768
"""Some 200 bytes each."""


@dataclass(frozen=True, slots=True)
class PromptReader:
    """Reads requests for one model. `served_model` is the name that requests ask for."""

    tokenizer: PreTrainedTokenizerBase
    encoder: PreTrainedTokenizerBase
    """A copy of it: encoding switches the tokenizer's flags, and must not run beside a decode in another thread."""
    served_model: str
    fingerprint: str
    capabilities: Capabilities
    token_text: Callable[[int], str]
    """A token's text by itself. Cached: prompts share most of their tokens, and decoding one takes 2.4 µs."""
    token_bytes: Callable[[int], bytes]
    """What a token writes, also where that is a part of a character."""
    defaults: Mapping[str, Any]
    """The model's own defaults for options that a request omits."""
    grammars: GrammarCompiler | None = None
    """None where this model can have none; then `response_format` isn't among the capabilities' options."""
    eos_token_ids: frozenset[int] = frozenset()
    tool_parser: str | None = None
    """The format in which the model writes calls of tools; None where it has none that is known."""

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        served_model: str,
        fingerprint: str,
        capabilities: Capabilities,
        defaults: Mapping[str, Any] | None = None,
    ) -> PromptReader:
        encoder = copy.deepcopy(tokenizer)
        token_text = lru_cache(_TEXTS_KEPT)(lambda token_id: cast("str", encoder.decode([token_id])))
        written = token_writer(encoder)
        return cls(tokenizer, encoder, served_model, fingerprint, capabilities, token_text, written, defaults or {})

    @property
    def kind(self) -> str:
        """Identifies workers that accept and refuse the same claims: what one of them can't serve, none can."""
        return f"{self.fingerprint}/{_release()}"

    def encode(self, options: Submission) -> tuple[int, ...]:
        """The prompt's token IDs. Raises RequestError."""
        given = filled(options)
        if (token_ids := given["prompt_token_ids"]) is not None:
            check_ids("prompt_token_ids", token_ids, self.capabilities.vocabulary)
            return tuple(token_ids)
        messages = cast("list[dict[str, object]] | None", given["messages"])
        arguments = json.loads(cast("str", given["chat_template_kwargs"]))
        tools = given["tools"] if self.tool_parser_of(given) else ()
        rendering = Rendering(given["continue_final_message"], arguments, cast("Sequence[Mapping[str, Any]]", tools))
        return tuple(encode_prompt(self.encoder, given["prompt"], messages, rendering))

    def token_texts(self, prompt_ids: tuple[int, ...], options: Submission) -> tuple[str, ...]:
        """The text of each token of a short prompt; empty for a longer one. Of one that is echoed, whatever its length,
        what each token releases, as an answer's tokens do: together they are its text."""
        if options.get("echo", False):
            detokenizer = Detokenizer(self.encoder)
            *released, last = map(detokenizer.push, prompt_ids)
            return (*released, last + detokenizer.flush())
        if len(prompt_ids) > MAX_PROMPT_TEXTS:
            return ()
        return tuple(map(self.token_text, prompt_ids))

    def stored_ids(self, prompt_ids: bytes | None) -> tuple[int, ...]:
        """The token IDs that the first claim stored. Raises RequestError for IDs that aren't this model's: one beyond
        the vocabulary would crash the engine, and every request in it."""
        try:
            ids = json.loads(prompt_ids or b"")
        except (ValueError, TypeError, RecursionError):
            ids = None
        if not isinstance(ids, list) or not ids or not self.in_vocabulary(ids):
            raise RequestError("the stored prompt_ids aren't token IDs of this model", field="prompt_ids")
        return tuple(ids)

    def in_vocabulary(self, ids: Sequence[object]) -> bool:
        vocabulary = self.capabilities.vocabulary
        return all(type(token_id) is int and 0 <= token_id < vocabulary for token_id in ids)

    def budget(self, prompt_tokens: int, emitted_tokens: int, options: Submission) -> int:
        """The tokens that the answer may have here, over all attempts.

        Raises RequestError `prompt_too_long` or `unsupported_option`.
        """
        return token_budget(prompt_tokens, emitted_tokens, options, self.capabilities)

    def bad_words(self, options: Submission) -> tuple[tuple[int, ...], ...]:
        """The token sequences that the answer may not contain. Raises RequestError."""
        return bad_word_ids(self.encoder, options["bad_words"])

    def grammar(self, options: Submission) -> Compilation | None:
        """What the answer must match, if anything, while it's compiled or after. Raises EngineError, and RequestError
        for calls that no grammar can write here."""
        asked = self._asked_grammar(cast("Mapping[str, Any]", options))
        return None if asked is None or self.grammars is None else self.grammars.begin(asked)

    def _asked_grammar(self, options: Mapping[str, Any]) -> Grammar | None:
        if tool_parser := self.tool_parser_of(options):
            grammar = calls_grammar(options, tool_parser)
            special = tool_parser == "hermes" and self.marks(options)
            if grammar and (tool_parser not in FORMATS or special or self.grammars is None):
                raise RequestError(_NO_GRAMMAR, field="tool_choice")
            return grammar
        asked = options.get("response_format")
        return None if asked is None else Grammar.of(asked)

    def tool_parser_of(self, options: Mapping[str, Any]) -> str | None:
        """The format of the calls that the answer may have; None where it has none."""
        return self.tool_parser if options.get("tools") and options.get("tool_choice") != "none" else None

    def marks(self, options: Mapping[str, Any]) -> dict[int, str]:
        """The special tokens that stay in the answer's text, for who parses it: vocabulary ID → text."""
        markers = set(Formats(self.tool_parser_of(options)).markers)
        added = self.tokenizer.added_tokens_decoder if markers else {}
        return {token_id: str(token) for token_id, token in added.items() if token.special and str(token) in markers}

    def close(self) -> None:
        """End the threads and processes that compile grammars."""
        if self.grammars is not None:
            self.grammars.close()

    def chosen(self, request: Submission) -> Submission:
        """The request with what the model's own defaults, else the general ones, say of the options that it omits."""
        return cast("Submission", {**DEFAULTS, **self.defaults, **request})

    def text(self, options: Submission) -> TokenText:
        """The text side of an answer; every option is filled in."""
        include = options["include_stop_str_in_output"]
        last_tokens = frozenset(options["stop_token_ids"] if include else ())
        # Who scores a text expects a last token behind it, whichever it is: docs/adr/0024.
        if options["echo"] and options["logprobs"] and not options["ignore_eos"]:
            last_tokens |= self.eos_token_ids
        rules = EndRules(
            stop=tuple(options["stop"]),
            include=include,
            last_tokens=last_tokens,
            min_tokens=options["min_tokens"],
            marks=self.marks(options),
        )
        return TokenText(self.tokenizer, rules, self.token_bytes)


@cache
def _release() -> str:
    return version("tokenrelay")
