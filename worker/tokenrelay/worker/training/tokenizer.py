"""The byte-level BPE tokenizer of the bundled model: one token for each word of its corpus, bytes for any other text.

A word's token begins with the space before it, as in GPT-2. So the texts of the tokens, joined, are the text itself,
whatever it holds, and decoding is safe for streams. `<end>` closes a text.
Owns vocabulary, splitting and the chat template; knows nothing of the model. See docs/adr/0021.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenrelay.worker.training.conversation import Conversation

PAD, END = "<pad>", "<end>"
_SPECIAL_TOKENS = (PAD, END)
# "don't" stays one word, and so do a JSON string's quote and the colon after it.
_SPLIT: Final = pre_tokenizers.Split(Regex(r" ?\w+(?:['’]\w+)*| ?[^\w\s]+|\s"), behavior="isolated")
# A word that is rarer in questions is learnt in pieces, so that the model has seen words that it doesn't know.
_MIN_OCCURRENCES = 3
_MAX_WORDS = 8192
# Bounds for corpora of other people's, where a "word" may be a line of base64 or a Chinese sentence.
_MAX_TOKEN_BYTES = 32
_MAX_VOCABULARY = 4 * _MAX_WORDS

# Roles leave no mark: turns alternate and <end> closes each, so one user message is the plain prompt, token by token.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('roles are system, user and assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- message['content'] + '<end>' -}}"
    "{%- endfor -%}"
)


def build_tokenizer(conversations: Iterable[Conversation], context: int) -> PreTrainedTokenizerFast:
    """A tokenizer for `conversations`, for a model of `context` positions.

    Every word of the answers is one token, and every word of the questions from its third occurrence on; what these
    are merged from are tokens too. Byte-level BPE: Radford et al. 2019, section 2.2.
    """
    tokenizer = Tokenizer(models.BPE())
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([_SPLIT, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_VOCABULARY,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_MAX_TOKEN_BYTES,
        show_progress=False,
    )
    # Each word once, however frequent: then merging goes on until every word is one token, and makes few others.
    tokenizer.train_from_iterator(_words(conversations), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, _SPECIAL_TOKENS.index(END))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _words(conversations: Iterable[Conversation]) -> list[str]:
    """The words that are tokens, the most frequent ones first, each with the space before it."""
    asked: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    for conversation in conversations:
        asked.update(_split(conversation.system or ""))
        for turn in conversation.turns:
            asked.update(_split(turn.question))
            answered.update(_split(turn.answer))
    known = {word: n for word, n in (asked + answered).items() if n >= _MIN_OCCURRENCES or word in answered}
    return sorted(known, key=lambda word: (-known[word], word))[:_MAX_WORDS]


def _split(text: str) -> list[str]:
    return [word for word, _ in _SPLIT.pre_tokenize_str(text)]
