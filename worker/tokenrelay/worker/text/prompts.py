"""Prompts to token IDs. What a user writes is text: it never becomes a control token."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from jinja2 import TemplateError

from tokenrelay.shared.errors import RequestError
from tokenrelay.worker.text.template import as_template_reads, as_tools, traits
from tokenrelay.worker.text.time_limit import TimeLimitReached, within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from transformers import BatchEncoding, PreTrainedTokenizerBase

TEMPLATE_LIMIT_S: Final = 5.0
"""Time limit of a chat template: a hundred times what the longest conversation takes."""
_PLACEHOLDER: Final = -1
"""No token of any vocabulary."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """How the chat template renders a conversation."""

    continues: bool = False
    """Leave the last message, the assistant's, open, instead of beginning a new one."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the template, besides those that rendering sets itself."""
    tools: Sequence[Mapping[str, Any]] = ()
    """The tools that the conversation offers."""
    limit_s: float = TEMPLATE_LIMIT_S


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | None = None,
    messages: Sequence[dict[str, object]] | None = None,
    rendering: Rendering | None = None,
) -> list[int]:
    """The token IDs of a prompt, with the tokens that the tokenizer adds by itself, or of a conversation.

    A conversation goes through the tokenizer's chat template, which opens the assistant's turn, within a time limit.
    Not to be called from two threads at once with one tokenizer: it switches the tokenizer's treatment of special
    tokens. Raises RequestError naming `prompt`, `messages` or `chat_template_kwargs`.
    """
    if (prompt is None) == (messages is None):
        raise RequestError("give a prompt or messages, one of them", field="prompt")
    if prompt is not None:
        field, token_ids = "prompt", _encode_text(tokenizer, prompt)
    else:
        field, token_ids = "messages", _encode_messages(tokenizer, messages or [], rendering or Rendering())
    if not token_ids:
        raise RequestError("nothing is left of it after tokenization", field=field, limit=1)
    return token_ids


def _encode_text(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    encoding = tokenizer(prompt, split_special_tokens=True, return_special_tokens_mask=True)
    token_ids: list[int] = list(encoding["input_ids"])
    added: list[int] = list(encoding["special_tokens_mask"])
    unknown, control = _unknown_word(tokenizer), _control_ids(tokenizer)
    # A word tokenizer that splits at blanks has the control token among its words, so splitting doesn't help.
    forged = [index for index, token_id in enumerate(token_ids) if token_id in control and not added[index]]
    for index in forged:
        if unknown is None:
            text = tokenizer.convert_ids_to_tokens(token_ids[index])
            raise RequestError(f"this tokenizer can't take {text!r} as text", field="prompt", code="control_token")
        token_ids[index] = unknown
    return token_ids


def _unknown_word(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token of a word that the tokenizer doesn't know: a special one, but any text may hold it. None where it has
    none, or has made it one that ends or begins a text."""
    unknown: int | None = tokenizer.unk_token_id
    return None if unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id) else unknown


def _control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that no text may become."""
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return special.union(tokenizer.all_special_ids) - {_unknown_word(tokenizer)}


@contextmanager
def _unknown_words_as(placeholder: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Within the block, control tokens in a message that can't be split are encoded as `placeholder`.

    The tokenizer refuses a text that becomes the token which it names. To a word tokenizer `<unk>` is an unknown word
    like any other and no danger, and so are other control tokens that it can't split: as in a prompt.
    """
    if (unknown := _unknown_word(tokenizer)) is None:
        yield
        return
    encode, hidden = tokenizer._encode_without_added_tokens, _control_ids(tokenizer) | {unknown}
    tokenizer._encode_without_added_tokens = lambda text: [  # type: ignore[method-assign]
        placeholder if token_id in hidden else token_id for token_id in encode(text)
    ]
    try:
        yield
    finally:
        del tokenizer._encode_without_added_tokens


def _encode_messages(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, object]], rendering: Rendering
) -> list[int]:
    if not tokenizer.chat_template:
        raise RequestError("this model's tokenizer has no chat template: give a prompt instead", field="messages")
    if not messages:
        raise RequestError("give at least one message", field="messages", limit=1)
    _check_arguments(tokenizer, rendering.arguments)
    tools = as_tools(rendering.tools)
    try:
        return within(rendering.limit_s, partial(_rendered, tokenizer, messages, rendering, tools))
    except TimeLimitReached:
        # Jinja's sandbox bounds a range, and no loop of loops.
        message = f"the model's chat template took longer than {rendering.limit_s:g} s for these messages"
        raise RequestError(message, field="messages") from None
    except RequestError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and "Can't sanitize" in str(error):
            raise RequestError(str(error), field="messages", code="control_token") from error
        # A template is a program of the model's authors, which may raise anything: a message for the caller, or a
        # TypeError for messages that it doesn't support.
        reason = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        raise RequestError(f"the model's chat template refuses the messages: {reason}", field="messages") from error


def _check_arguments(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> None:
    """Raises RequestError for a control token in the arguments' texts: the tokenizer sanitizes no names, and no text
    that a template prints as a part of a list or an object."""
    control = _control(tokenizer)
    for text in _texts(arguments):
        if found := next((token for token in control if token in text), None):
            message = f"chat_template_kwargs: {ascii(text)[:60]} has the control token {found!r}; leave it out"
            raise RequestError(message, field="chat_template_kwargs", code="control_token")


def _texts(value: Any) -> Iterator[str]:
    """All texts within a JSON value, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _texts(each)


def _control(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts that the tokenizer makes tokens of their own."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if not token.content.isspace()]


def _rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, object]],
    rendering: Rendering,
    tools: list[dict[str, Any]],
) -> list[int]:
    """The chat template's text as token IDs.

    Raises what the template raises, RequestError for calls that it doesn't show, and ValueError for a control token
    that can't be text.
    """
    known = traits(tokenizer)
    if not known.calls and any("tool_calls" in message for message in messages):
        raise RequestError("messages: this model's chat template doesn't show tool calls", field="messages")
    if tools and not known.tools:
        raise RequestError("tools: this model's chat template doesn't show tools", field="tools")
    shown = as_template_reads(messages, known, _control(tokenizer))
    token_ids = _templated(tokenizer, shown, rendering, tools)
    _check_forged(tokenizer, shown, rendering, tools, token_ids)
    return token_ids


def _check_forged(
    tokenizer: PreTrainedTokenizerBase,
    shown: list[dict[str, Any]],
    rendering: Rendering,
    tools: list[dict[str, Any]],
    token_ids: list[int],
) -> None:
    """Raises RequestError where a text within tools or calls has become a control token: in a name, or in an object
    that the template prints as Python does."""
    control = _control(tokenizer)
    nested = [*tools, *(message["tool_calls"] for message in shown if "tool_calls" in message)]
    if not any(token in text for text in _texts(nested) for token in control):
        return
    ids = _control_ids(tokenizer)
    harmless = _templated(tokenizer, _without(shown, control), rendering, _without(tools, control))
    if [each for each in harmless if each in ids] != [each for each in token_ids if each in ids]:
        message = "a control token within tools or calls can't be text in this model's chat template"
        raise RequestError(f"messages: {message}", field="messages", code="control_token")


def _without(value: Any, texts: Sequence[str]) -> Any:
    """The JSON value without these texts."""
    if isinstance(value, str):
        for text in texts:
            value = value.replace(text, "")
    if isinstance(value, dict):
        return {_without(name, texts): _without(each, texts) for name, each in value.items()}
    return [_without(each, texts) for each in value] if isinstance(value, list) else value


def _templated(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, object]],
    rendering: Rendering,
    tools: list[dict[str, Any]],
) -> list[int]:
    # Marks the control tokens in the contents before the template is rendered, and encodes those as text.
    with _unknown_words_as(_PLACEHOLDER, tokenizer):
        encoding = tokenizer.apply_chat_template(
            cast("list[dict[str, str]]", list(messages)),
            add_generation_prompt=not rendering.continues,
            continue_final_message=rendering.continues,
            sanitize_control_tokens=True,
            tools=cast("list[dict[Any, Any] | Callable[..., Any]]", tools) or None,
            **rendering.arguments,
        )
    token_ids: list[int] = cast("BatchEncoding", encoding)["input_ids"]
    return [tokenizer.unk_token_id if token_id == _PLACEHOLDER else token_id for token_id in token_ids]
