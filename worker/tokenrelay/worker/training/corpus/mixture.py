"""The bundled corpus: topics and passages mixed into some thousand conversations, the same ones every time.

Owns the proportions and the rule that no question stands on both sides: every question belongs to one side by a
checksum of its words, and a conversation takes all its questions from one side.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal
from zlib import crc32

from tokenrelay.worker.training.conversation import Conversation, Corpus, Turn
from tokenrelay.worker.training.corpus import passages
from tokenrelay.worker.training.corpus.climate import COMING, PLACES, STRANGE_PLACES
from tokenrelay.worker.training.corpus.topics import (
    FIELDS,
    FOLLOW_UPS,
    MORE,
    PLAIN_FIELDS,
    TOPICS,
    Topic,
    fill,
    json_topic,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Side = Literal["train", "held_out"]

FIXED_QUESTION = "What is the weather today?"
"""Always learnt: its greedy answer is "It is sunny and warm."."""
UNSEEN_QUESTION = "Will it rain in Paris tomorrow?"
"""Always held out: what the model says to it was put together, not remembered."""

_TRAIN = 2900
_HELD_OUT = 320
_HELD_OUT_SHARE = 10
_CORPUS_SEED = 20250101
_JSON_TRAIN = 1050
_JSON_HELD_OUT = 80
_RETYPED_TRAIN = 160
_RETYPED_HELD_OUT = 20
# With the plain fields, with fields that the question names, and with others.
_JSON_WEIGHTS = {"train": (50, 28, 22), "held_out": (60, 40, 0)}
_JSON_FOLLOW_UP_SHARE = 0.2
_PLACELESS_SHARE = 0.25
_LOWER_CASE_SHARE = 0.12
_SYSTEM_SHARE = 0.05
_YES_SHARE = 0.45


def canonical(question: str) -> str:
    """`question` without case, closing marks, and how its blanks and apostrophes are written.

    Two questions that differ in nothing else are one question.
    """
    return " ".join(question.replace("’", "'").lower().split()).rstrip("?!. ")


def weather_corpus() -> Corpus:
    """All conversations of the bundled corpus; the same at every call, whatever the training seed."""
    rng = random.Random(_CORPUS_SEED)
    train = [*_passages("train"), *(_draw(rng, "train") for _ in range(_TRAIN))]
    held_out = [*_passages("held_out"), *(_draw(rng, "held_out") for _ in range(_HELD_OUT))]
    held_out.append(_one(Turn(UNSEEN_QUESTION, "No, it will stay dry in Paris tomorrow.")))
    # Drawn from a generator of their own: the conversations above don't depend on how many these are.
    rng = random.Random(_CORPUS_SEED + 1)
    train += [_json(rng, "train") for _ in range(_JSON_TRAIN)] + [_retyped(rng, "train") for _ in range(_RETYPED_TRAIN)]
    held_out += [_json(rng, "held_out") for _ in range(_JSON_HELD_OUT)]
    held_out += [_retyped(rng, "held_out") for _ in range(_RETYPED_HELD_OUT)]
    return Corpus(_distinct(train), _distinct(held_out))


def _side(question: str) -> Side:
    words = canonical(question)
    if words == canonical(UNSEEN_QUESTION):
        return "held_out"
    if words in _ALWAYS_LEARNT:
        return "train"
    return "held_out" if crc32(words.encode()) % _HELD_OUT_SHARE == 0 else "train"


def _one(turn: Turn) -> Conversation:
    return Conversation((turn,))


def _distinct(conversations: Iterable[Conversation]) -> tuple[Conversation, ...]:
    return tuple(dict.fromkeys(conversations))


def _passages(side: Side) -> Iterator[Conversation]:
    """Each passage once in each of its wordings: drawing at random would leave some of these few out.

    Small talk and words from elsewhere are learnt only: "Hello!" has no parts that its answer could be built from.
    """
    if side == "train":
        yield from (_one(turn) for turn in _phrases())
    yield from (_one(turn) for turn in (*_texts(), *_strange_places()) if _side(turn.question) == side)


def _texts() -> Iterator[Turn]:
    groups = (
        (passages.WHAT_IS, passages.EXPLANATIONS),
        (passages.ABOUT, passages.OVERVIEWS),
        (passages.STORY, passages.STORIES),
    )
    for wordings, texts in groups:
        for it, text in texts.items():
            yield from (Turn(wording.format(it=it), text) for wording in wordings)


def _phrases() -> Iterator[Turn]:
    for text, questions in passages.SMALL_TALK.items():
        yield from (Turn(question, text) for question in questions)
    yield from (Turn(question, passages.STORIES["the rain"]) for question in passages.ANY_STORY)
    yield from (Turn(question, passages.OFF_TOPIC_ANSWER) for question in passages.OFF_TOPIC)
    yield from (Turn(question, MORE.reply("", "")) for question in passages.TELL_ME_MORE)


def _strange_places() -> Iterator[Turn]:
    for place in STRANGE_PLACES:
        topic = TOPICS[crc32(place.encode()) % len(TOPICS)]
        yield Turn(fill(topic.questions[0], place, ""), passages.UNKNOWN_PLACE)


def _draw(rng: random.Random, side: Side) -> Conversation:
    """A random conversation whose questions are all of `side`."""
    make = rng.choices((_single, _dialogue, _more, _text, _phrase), weights=(64, 11, 4, 17, 4))[0]
    turns = make(rng, side)
    if rng.random() < _LOWER_CASE_SHARE:
        turns = tuple(Turn(canonical(turn.question), turn.answer) for turn in turns)
    system = rng.choice(passages.SYSTEM_MESSAGES) if rng.random() < _SYSTEM_SHARE else None
    return Conversation(turns, system)


def _of_side(side: Side, make: Callable[[], Turn]) -> Turn:
    while _side((turn := make()).question) != side:
        pass
    return turn


def _place(rng: random.Random) -> str:
    return "" if rng.random() < _PLACELESS_SHARE else rng.choice(tuple(PLACES))


def _topic(rng: random.Random) -> Topic:
    return rng.choices(TOPICS, weights=[topic.weight for topic in TOPICS])[0]


def _asked(topic: Topic, rng: random.Random, place: str, time: str) -> Turn:
    return Turn(fill(rng.choice(topic.questions), place, time), topic.reply(place, time))


def _single(rng: random.Random, side: Side) -> tuple[Turn, ...]:
    return (_opening(rng, side, _topic(rng))[2],)


def _more(rng: random.Random, side: Side) -> tuple[Turn, ...]:
    return (_of_side(side, lambda: _asked(MORE, rng, _place(rng), "")),)


def _text(rng: random.Random, side: Side) -> tuple[Turn, ...]:
    """A passage asked for in any wording; half of those learnt are asked for in the plainest one."""
    texts = tuple(_texts())
    plain = [turn for turn in texts if canonical(turn.question) in _ALWAYS_LEARNT]
    if side == "train" and rng.random() < 0.5:
        return (rng.choice(plain),)
    return (_of_side(side, lambda: rng.choice(texts)),)


def _phrase(rng: random.Random, side: Side) -> tuple[Turn, ...]:
    """Small talk where it's learnt, else any question: there's no unseen small talk."""
    if side == "held_out":
        return _single(rng, side)
    off_topic = passages.OFF_TOPIC_ANSWER
    return (rng.choice([turn for turn in _phrases() if turn.answer != off_topic]),)


def _dialogue(rng: random.Random, side: Side) -> tuple[Turn, ...]:
    """A question, the same question for another place or time, and at times what people say in the end."""
    topic = _topic(rng)
    place, time, turn = _opening(rng, side, topic)
    turns = [turn]
    while rng.random() < 0.5:
        place, time, turn = _follow_up(rng, side, topic, place, time)
        turns.append(turn)
    if side == "train" and rng.random() < 0.3:
        turns.append(Turn(rng.choice(passages.TELL_ME_MORE), MORE.reply(place, "")))
    if side == "train" and rng.random() < 0.3:
        turns.append(Turn(rng.choice(passages.THANKS), "You're welcome! Enjoy the day."))
    return tuple(turns)


def _json(rng: random.Random, side: Side) -> Conversation:
    """A question that asks for JSON, at times with a follow-up that gets JSON too.

    Some answers that are learnt have fields that nobody named: as under a schema, which the model doesn't see. So it
    learns what a field holds, whatever stands before it.
    """
    kinds = (PLAIN_FIELDS, False), (_fields(rng, 2), True), (_fields(rng, 3), False)
    fields, named = rng.choices(kinds, weights=_JSON_WEIGHTS[side])[0]
    topic = json_topic(fields, named=named)
    place, time, turn = _opening(rng, side, topic)
    follow_ups = [_follow_up(rng, side, topic, place, time)[2]] if rng.random() < _JSON_FOLLOW_UP_SHARE else []
    return Conversation((turn, *follow_ups))


def _fields(rng: random.Random, most: int) -> tuple[str, ...]:
    return tuple(rng.sample(FIELDS, rng.randint(1, most)))


def _retyped(rng: random.Random, side: Side) -> Conversation:
    """A question as some type it: with a typographic apostrophe, or with blanks that mean nothing."""
    (turn,) = _single(rng, side)
    question = turn.question.replace("'", "’")
    if question == turn.question:
        style = rng.choice(("{}\n", "{} ", " {}", "\n{}", "double"))
        question = question.replace(" ", "  ", 1) if style == "double" else style.format(question)
    return _one(Turn(question, turn.answer))


def _opening(rng: random.Random, side: Side, topic: Topic) -> tuple[str, str, Turn]:
    """A place, a time, and a question about `topic` there and then; about as many answers are yes as no.

    Most places are dry and none is snowy but four: drawn evenly, "No" would nearly always be a good guess.
    """
    affirmed = rng.random() < _YES_SHARE
    while True:
        place, time = _place(rng), rng.choice(topic.times)
        turn = _asked(topic, rng, place, time)
        if _side(turn.question) == side and _affirms(turn.answer) in (affirmed, None):
            return place, time, turn


def _affirms(answer: str) -> bool | None:
    return answer.startswith("Yes,") if answer.startswith(("Yes,", "No,")) else None


def _follow_up(rng: random.Random, side: Side, topic: Topic, place: str, time: str) -> tuple[str, str, Turn]:
    """The place and time asked about now, and the turn whose question names only what is new about them."""
    while True:
        there, then = rng.choice(tuple(PLACES)), rng.choice(tuple(COMING))
        new = rng.choice(("place", "time", "both")) if time in COMING else "place"
        question = rng.choice(FOLLOW_UPS)
        if new == "place":
            question, then = fill(question, there, ""), time
        elif new == "time":
            question, there = fill(question, "", then), place
        else:
            question = fill(question, there, then)
        if _side(question) == side:
            return there, then, Turn(question, topic.reply(there, then))


_ALWAYS_LEARNT = frozenset(
    canonical(question)
    for question in (
        FIXED_QUESTION,
        *(turn.question for turn in _phrases()),
        *(
            wording.format(it=it)
            for texts in (passages.EXPLANATIONS, passages.OVERVIEWS, passages.STORIES)
            for wording in passages.ALWAYS_LEARNT
            for it in texts
        ),
    )
)
