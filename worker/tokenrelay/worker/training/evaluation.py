"""Evaluation: loss and next-token accuracy on examples, and a model's answer to a question.

Counts answer tokens only, each once, however they are batched. Knows nothing of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from tokenrelay.worker.training.encoding import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from tokenrelay.worker.training.encoding import Encoder, Example

_BATCH_SIZE = 64
_MAX_ANSWER_TOKENS = 80


@dataclass(frozen=True, slots=True)
class Score:
    """Mean cross-entropy in nats and the share of right next tokens, over `tokens` answer tokens."""

    loss: float
    accuracy: float
    tokens: int


@torch.inference_mode()
def measure(model: PreTrainedModel, encoder: Encoder, examples: Sequence[Example]) -> Score:
    """The score of `model` on `examples`; leaves the model in the mode it found."""
    was_training = model.training
    model.train(False)
    loss, right, tokens = 0.0, 0, 0
    # By length, so that short examples aren't padded to the longest one.
    ordered = sorted(examples, key=lambda example: len(example["input_ids"]))
    for start in range(0, len(ordered), _BATCH_SIZE):
        batch = {name: rows.to(model.device) for name, rows in encoder.collate(ordered[start:][:_BATCH_SIZE]).items()}
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].float()
        labels = batch["labels"][:, 1:]
        loss += cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="sum").item()
        right += int((logits.argmax(-1) == labels).sum())
        tokens += int((labels != IGNORED).sum())
    model.train(was_training)
    return Score(loss / tokens, right / tokens, tokens)


@torch.inference_mode()
def greedy_answer(model: PreTrainedModel, encoder: Encoder, question: str) -> str:
    """The greedy answer of `model` to `question`; leaves the model in the mode it found."""
    was_training = model.training
    model.train(False)
    ids = list(encoder.prompt_ids(question))
    answer: list[int] = []
    while len(answer) < _MAX_ANSWER_TOKENS and len(ids) + len(answer) < encoder.context:
        logits = model(input_ids=torch.tensor([ids + answer], device=model.device)).logits[0, -1]
        token = int(logits.argmax())
        if token == encoder.tokenizer.eos_token_id:
            break
        answer.append(token)
    model.train(was_training)
    return str(encoder.tokenizer.decode(answer, skip_special_tokens=True))
