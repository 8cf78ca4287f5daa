"""Prompts to token IDs. What a user writes is text: it never becomes a control token."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from jinja2 import TemplateError

from tokenrelay.shared.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import BatchEncoding, PreTrainedTokenizerBase


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | None = None,
    messages: Sequence[dict[str, object]] | None = None,
) -> list[int]:
    """The token IDs of a prompt, with the tokens that the tokenizer adds by itself, or of a conversation.

    A conversation goes through the tokenizer's chat template, which opens the assistant's turn. Not to be called from
    two threads at once with one tokenizer: it switches the tokenizer's treatment of special tokens.
    Raises RequestError naming `prompt` or `messages`.
    """
    if (prompt is None) == (messages is None):
        raise RequestError("give a prompt or messages, one of them", field="prompt")
    if prompt is not None:
        field, token_ids = "prompt", _encode_text(tokenizer, prompt)
    else:
        field, token_ids = "messages", _encode_messages(tokenizer, messages or [])
    if not token_ids:
        raise RequestError("nothing is left of it after tokenization", field=field, limit=1)
    return token_ids


def _encode_text(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    encoding = tokenizer(prompt, split_special_tokens=True, return_special_tokens_mask=True)
    token_ids: list[int] = list(encoding["input_ids"])
    added: list[int] = list(encoding["special_tokens_mask"])
    # A word tokenizer that splits at blanks has the control token among its words, so splitting doesn't help.
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    control = special.union(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    forged = [index for index, token_id in enumerate(token_ids) if token_id in control and not added[index]]
    for index in forged:
        if tokenizer.unk_token_id is None:
            text = tokenizer.convert_ids_to_tokens(token_ids[index])
            raise RequestError(f"this tokenizer can't take {text!r} as text", field="prompt", code="control_token")
        token_ids[index] = tokenizer.unk_token_id
    return token_ids


def _encode_messages(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, object]]) -> list[int]:
    if not tokenizer.chat_template:
        raise RequestError("this model's tokenizer has no chat template: give a prompt instead", field="messages")
    if not messages:
        raise RequestError("give at least one message", field="messages", limit=1)
    try:
        # Marks the control tokens in the contents before the template is rendered, and encodes those as text.
        encoding = tokenizer.apply_chat_template(
            cast("list[dict[str, str]]", list(messages)), add_generation_prompt=True, sanitize_control_tokens=True
        )
    except TemplateError as error:
        raise RequestError(f"the model's chat template refuses the messages: {error}", field="messages") from error
    except ValueError as error:
        raise RequestError(str(error), field="messages", code="control_token") from error
    token_ids: list[int] = cast("BatchEncoding", encoding)["input_ids"]
    return token_ids
