"""The word-level tokenizer of the bundled model: words and punctuation marks are tokens, `<end>` closes a text.

Decoding is safe for streams: the text of the first n tokens is always a prefix of the text of the first n + 1.
Owns vocabulary, splitting, joining and the chat template; knows nothing of the model.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenrelay.worker.training.conversation import Conversation

PAD, UNKNOWN, END = "<pad>", "<unk>", "<end>"
_SPECIAL_TOKENS = (PAD, UNKNOWN, END)
# "don't" stays one word: so only marks are joined to the word before them, and no mark to the word after it.
_WORD_OR_MARK = r"\w+(?:'\w+)*|[^\w\s]"
_SPACE_BEFORE_MARK = r"^ (?=[^\w<])"
# A word that is rarer in questions is learnt as <unk>, so that the model has seen what it can't read.
_MIN_OCCURRENCES = 3
_MAX_WORDS = 8192

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
    """A tokenizer over the words of `conversations`, for a model of `context` positions.

    All words of answers are in the vocabulary, words of questions from the third occurrence on.
    """
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("’", "'")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD_OR_MARK), behavior="removed", invert=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=False), decoders.Replace(Regex(_SPACE_BEFORE_MARK), "")]
    )
    tokenizer.model = models.WordLevel(_vocabulary(tokenizer, conversations), unk_token=UNKNOWN)
    tokenizer.add_special_tokens(list(_SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, _SPECIAL_TOKENS.index(END))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _vocabulary(tokenizer: Tokenizer, conversations: Iterable[Conversation]) -> dict[str, int]:
    asked: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    for conversation in conversations:
        asked.update(_words(tokenizer, conversation.system or ""))
        for turn in conversation.turns:
            asked.update(_words(tokenizer, turn.question))
            answered.update(_words(tokenizer, turn.answer))
    known = {word: n for word, n in (asked + answered).items() if n >= _MIN_OCCURRENCES or word in answered}
    ranked = sorted(known, key=lambda word: (-known[word], word))[:_MAX_WORDS]
    return {word: number for number, word in enumerate((*_SPECIAL_TOKENS, *ranked))}


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))]
