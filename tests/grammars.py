"""Vocabularies and walks for tests of grammars."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tokenrelay.worker.sampling.grammar.matcher import AnswerMask, CompiledGrammar
from tokenrelay.worker.sampling.grammar.token_bytes import read_vocabulary

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

    from tokenrelay.worker.sampling.grammar.vocabulary import Vocabulary

TEXTS = [
    "The weather in Oslo is sunny and warm.",
    'It is {"sky":"clear","degrees":-12,"at":"2026-01-31"}.',
    "Grüße, 世界 🌍",
] * 3


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """As transformers has it, with the token <eos>."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")  # type: ignore[no-untyped-call]


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level BPE, as GPT-2's: tokens may hold parts of characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<eos>", "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens(["<think>"])
    return fast(tokenizer)


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: SentencePiece's blanks, and bytes for what isn't in the vocabulary."""
    pieces = [
        "<eos>",
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "\u2581the",
        "the",
        "\u2581is",
        "is",
    ]
    pieces += [chr(each) for each in range(0x21, 0x7F)] + ["ü", '":"', "12"]
    tokenizer = Tokenizer(
        models.BPE({piece: at for at, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast(tokenizer)


@cache
def vocabulary() -> Vocabulary:
    """Of the byte-level tokenizer, for a model with some more IDs than it has tokens."""
    return read_vocabulary(byte_level_tokenizer(), 440, frozenset({0}))


def allowed(bits: torch.Tensor) -> list[int]:
    """The IDs in a bitmask."""
    shifted = bits.unsqueeze(1) >> torch.arange(32, dtype=torch.int32)
    return [int(each) for each in (shifted & 1).flatten().nonzero()]


def walk(
    grammar: CompiledGrammar, rng: random.Random, limit: int, eos: Sequence[int] = (0,)
) -> tuple[list[int], list[torch.Tensor], bool]:
    """Random tokens that the grammar allows, all equally likely: the draw of an infinite temperature.

    Returns the tokens, the mask before each of them, and whether the grammar let the answer end.
    """
    mask, ids, masks = AnswerMask(grammar), list[int](), list[torch.Tensor]()
    while len(ids) < limit:
        masks.append(mask(ids))
        choices = allowed(masks[-1])
        if not choices:
            return ids, masks, False
        token = rng.choice(choices)
        if token in eos:
            return ids, masks, True
        ids.append(token)
    return ids, masks, False


def save_tiny_model(folder: Path) -> None:
    """A model with random weights and the byte-level tokenizer: every text can be written."""
    torch.manual_seed(5)
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    config = LlamaConfig(
        vocab_size=440, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, eos_token_id=0, pad_token_id=1, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
