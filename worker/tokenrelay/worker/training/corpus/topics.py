"""What one asks about the weather of a place and a time, and the true answer.

Owns the wordings of questions and answers; the facts are climate's, the mixing into conversations is mixture's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenrelay.worker.training.corpus.climate import COMING, DARK, PRESENT, SPORTS, Climate, climate_of

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Topic:
    """A question in several wordings with one answer.

    questions hold {at} (" in Oslo" or "") and {when} (" tomorrow" or ""), and so does what answer gives for a climate.
    weight: how often it's asked; a bare yes or no takes longest to learn.
    """

    questions: tuple[str, ...]
    times: tuple[str, ...]
    answer: Callable[[Climate], str]
    weight: int = 1

    def reply(self, place: str, time: str) -> str:
        """The true answer."""
        climate = climate_of(place, time)
        facts = {name: json.dumps(getattr(climate, name)) for name in ("rain", "snow")}
        return fill(self.answer(climate), place, time).format(
            place=place or _HERE, sky=climate.sky, degrees=climate.degrees, clothes=climate.clothes, **facts
        )


def fill(text: str, place: str, time: str) -> str:
    """`text` with {at} and {when} filled in; "" leaves one out."""
    text = text.replace("{at}", f" in {place}" if place else "")
    return text.replace("{when}", f" {time}" if time else "")


_HERE = "here"
_LATER = tuple(COMING)
_ANY_DAY = ("", "today", *_LATER)
# The weather comes before what follows from it: so the model reads it off its own answer.
_OUTLOOK = "It will be {sky}{at}{when}"


def _yes_or_no(fact: str, yes: str, no: str) -> Callable[[Climate], str]:
    return lambda climate: yes if getattr(climate, fact) else no


def _sport(sport: str) -> Topic:
    return Topic(
        (
            f"Can we go {sport}{{at}}{{when}}?",
            f"Is it good weather for {sport}{{at}}{{when}}?",
            f"Should I go {sport}{{at}}{{when}}?",
        ),
        _ANY_DAY,
        lambda climate: f"{_OUTLOOK}, {'good' if sport in climate.sports else 'not good'} for {sport}.",
    )


_NOW = (
    Topic(
        (
            "What is the weather{at}{when}?",
            "What's the weather{at}{when}?",
            "What is the weather like{at}{when}?",
            "What's the weather like{at}{when}?",
            "How is the weather{at}{when}?",
            "Tell me the weather{at}{when}.",
            "Can you tell me the weather{at}{when}?",
        ),
        PRESENT,
        lambda _: "It is {sky}{at}.",
    ),
    Topic(
        ("Is it raining{at}{when}?", "Is there any rain{at}{when}?"),
        PRESENT,
        _yes_or_no("rain", "Yes, it is raining{at}.", "No, it is dry{at}."),
        weight=2,
    ),
    Topic(
        ("What is the temperature{at}{when}?", "How warm is it{at}{when}?", "How cold is it{at}{when}?"),
        PRESENT,
        lambda _: "It is {sky}{at}, about {degrees} degrees.",
    ),
)
_COMING = (
    Topic(
        (
            "What is the weather{at}{when}?",
            "What's the weather like{at}{when}?",
            "What will the weather be{at}{when}?",
            "What will the weather be like{at}{when}?",
            "How will the weather be{at}{when}?",
            "Tell me the weather{at}{when}.",
            "Can you tell me the weather{at}{when}?",
        ),
        _LATER,
        lambda _: "It will be {sky}{at}{when}.",
    ),
    Topic(
        ("What will the temperature be{at}{when}?", "How warm will it be{at}{when}?", "How cold will it be{at}{when}?"),
        _LATER,
        lambda _: f"{_OUTLOOK}, about {{degrees}} degrees.",
    ),
    Topic(
        ("Will it rain{at}{when}?", "Is it going to rain{at}{when}?", "Do you expect rain{at}{when}?"),
        _ANY_DAY,
        _yes_or_no("rain", "Yes, it will rain{at}{when}.", "No, it will stay dry{at}{when}."),
        weight=2,
    ),
    Topic(
        ("Will it snow{at}{when}?", "Is it going to snow{at}{when}?", "Do you expect snow{at}{when}?"),
        _ANY_DAY,
        _yes_or_no("snow", "Yes, it will snow{at}{when}.", "No, there will be no snow{at}{when}."),
        weight=2,
    ),
    Topic(
        ("Will it be windy{at}{when}?", "Is it going to be windy{at}{when}?", "Do you expect wind{at}{when}?"),
        _ANY_DAY,
        lambda climate: f"{_OUTLOOK}, with {'a strong' if climate.wind else 'little'} wind.",
    ),
    Topic(
        ("Will the sun shine{at}{when}?", "Will it be sunny{at}{when}?", "Do I need sunglasses{at}{when}?"),
        tuple(time for time in _ANY_DAY if time not in DARK),
        lambda climate: f"{_OUTLOOK}, with {'a lot of' if climate.sun else 'little'} sun.",
    ),
    Topic(
        (
            "Do I need an umbrella{at}{when}?",
            "Should I take an umbrella{at}{when}?",
            "Will I need an umbrella{at}{when}?",
        ),
        _ANY_DAY,
        _yes_or_no("rain", f"{_OUTLOOK}, so take an umbrella.", f"{_OUTLOOK}, so leave the umbrella at home."),
    ),
    Topic(
        ("What should I wear{at}{when}?", "What clothes do I need{at}{when}?", "What do I wear{at}{when}?"),
        _ANY_DAY,
        lambda _: f"{_OUTLOOK}. Wear {{clothes}}.",
    ),
    *(_sport(sport) for sport in SPORTS),
)
TOPICS = _NOW + _COMING

MORE = Topic(
    (
        "Tell me more about the weather{at}.",
        "Can you tell me more about the weather{at}?",
        "I want to know more about the weather{at}.",
        "What is the climate like{at}?",
    ),
    ("",),
    lambda climate: (
        "Most days are {sky}{at}, with about {degrees} degrees at noon. "
        + (
            "The rain comes often, so keep an umbrella in your bag. "
            if climate.rain
            else "It rains only now and then. "
        )
        + "Wear {clothes} and you will be fine."
    ),
)

_FIELDS = {
    "place": '"{place}"',
    "city": '"{place}"',
    "weather": '"{sky}"',
    "degrees": "{degrees}",
    "temperature": "{degrees}",
    "rain": "{rain}",
    "snow": "{snow}",
}
FIELDS = tuple(_FIELDS)
"""The fields that a JSON answer may have."""
PLAIN_FIELDS = ("place", "weather", "degrees", "rain")
"""Those that it has where the question names none."""
_AS_JSON = ("Answer as JSON", "Answer in JSON", "Please answer as JSON", "Reply in JSON")


def json_topic(fields: tuple[str, ...], *, named: bool) -> Topic:
    """The weather as a JSON object with `fields` in this order; `named`: whether the question names them.

    Without blanks, as grammars are compiled here.
    """
    which = f" with {' and '.join(fields)}" if named else ""
    asked = tuple(
        f"{question}{blank}{how}{which}." for question in _NOW[0].questions for how in _AS_JSON for blank in (" ", "\n")
    )
    members = ",".join(f'"{name}":{_FIELDS[name]}' for name in fields)
    return Topic(asked, ("", "today", "right now", *_LATER), lambda _: f"{{{{{members}}}}}")


FOLLOW_UPS = ("And{at}{when}?", "What about{at}{when}?", "How about{at}{when}?")
