"""The model that is trained: a new small Llama, or an existing one loaded from safetensors.

Owns the bundled model's shape. Knows nothing of training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from tokenrelay.worker.training.encoding import Encoder
from tokenrelay.worker.training.settings import TrainingError
from tokenrelay.worker.training.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel

    from tokenrelay.worker.training.conversation import Conversation

_CONTEXT = 2048


def new_model(conversations: Iterable[Conversation]) -> tuple[PreTrainedModel, Encoder]:
    """An untrained model with a vocabulary for `conversations`; its weights come from torch's current seed."""
    tokenizer = build_tokenizer(conversations, _CONTEXT)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=312,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        # About 1 / sqrt(width): with transformers' default, 0.02, five epochs left twice the loss.
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=128
    )
    return model, Encoder(tokenizer, _CONTEXT)


def load_model(name: str) -> tuple[PreTrainedModel, Encoder]:
    """The model `name` (a Hub name or a folder) in float32, with its own tokenizer and chat template.

    Safetensors only and no code from the model's repository. Raises TrainingError where it can't be loaded.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise TrainingError(f"{name} can't be loaded as a causal language model: {error}") from error
    context = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    return model, Encoder(tokenizer, context)
