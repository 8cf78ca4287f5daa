"""Conversations as token IDs with labels, and batches of them.

Only answers are labelled: a question's tokens carry IGNORED, so neither loss nor accuracy counts them.
The tokens before an answer are exactly those of the same conversation when the model is served. Knows no training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jinja2 import TemplateError

from tokenrelay.worker.training.settings import TrainingDataError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from tokenrelay.worker.training.conversation import Conversation

IGNORED = -100
"""The label of a token that doesn't count, as PyTorch's cross-entropy takes it."""

Example = dict[str, list[int]]
"""input_ids and labels, of equal length, as transformers' Trainer takes them."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """Turns conversations into examples with a model's own tokenizer and chat template.

    context: the model's positions; a longer conversation is refused rather than cut.
    """

    tokenizer: PreTrainedTokenizerBase
    context: int

    def encode_all(self, conversations: Iterable[Conversation]) -> list[Example]:
        """The examples of `conversations`, in order."""
        return [example for conversation in conversations for example in self.encode(conversation)]

    def encode(self, conversation: Conversation) -> list[Example]:
        """One example, or several where the chat template rewrites earlier turns (some drop their reasoning).

        Raises TrainingDataError where the template refuses the conversation or the context is too short for it.
        """
        examples: list[Example] = []
        ids: list[int] = []
        labels: list[int] = []
        for number, turn in enumerate(conversation.turns):
            prompt = self._prompt(conversation, number)
            if ids and prompt[: len(ids)] != ids:
                examples.append({"input_ids": ids, "labels": labels})
                ids, labels = [], []
            labels = labels + [IGNORED] * (len(prompt) - len(ids))
            answer = self._ids(turn.answer, special=False) + [self._end()]
            ids, labels = prompt + answer, labels + answer
        examples.append({"input_ids": ids, "labels": labels})
        self._check_length(examples, conversation)
        return examples

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """input_ids, labels and attention_mask, each (rows, longest), int64, padded on the right."""
        longest = max(len(example["input_ids"]) for example in examples)
        padding = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self._end()

        def padded(name: str, value: int) -> Tensor:
            return torch.tensor([example[name] + [value] * (longest - len(example[name])) for example in examples])

        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        return {
            "input_ids": padded("input_ids", padding),
            "labels": padded("labels", IGNORED),
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        }

    def prompt_ids(self, question: str) -> list[int]:
        """The prompt of one question by itself."""
        if not self.tokenizer.chat_template:
            return self._ids(question, special=True)
        return self._rendered([{"role": "user", "content": question}])

    def _prompt(self, conversation: Conversation, number: int) -> list[int]:
        """The tokens before answer `number`."""
        if not self.tokenizer.chat_template:
            if len(conversation.turns) > 1 or conversation.system:
                raise TrainingDataError(
                    f"{conversation.source}: the model has no chat template, so it takes one prompt and one answer only"
                )
            return self._ids(conversation.turns[0].question, special=True)
        messages = [{"role": "system", "content": conversation.system}] if conversation.system else []
        for turn in conversation.turns[:number]:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        messages.append({"role": "user", "content": conversation.turns[number].question})
        try:
            return self._rendered(messages)
        except TemplateError as error:
            raise TrainingDataError(f"{conversation.source}: the model's chat template refuses it: {error}") from error

    def _rendered(self, messages: list[dict[str, str]]) -> list[int]:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self._ids(str(text), special=False)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def _end(self) -> int:
        end = self.tokenizer.eos_token_id
        if not isinstance(end, int):
            raise TrainingError("the model's tokenizer has no end-of-sequence token, so answers could never end")
        return end

    def _check_length(self, examples: list[Example], conversation: Conversation) -> None:
        longest = max(len(example["input_ids"]) for example in examples)
        if longest > self.context:
            raise TrainingDataError(
                f"{conversation.source}: {longest} tokens, but the model's context is {self.context}: shorten it"
            )
