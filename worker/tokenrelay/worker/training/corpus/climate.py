"""Which weather each place and each coming day has: the facts that the bundled model learns.

The weather of a place is fixed (Oslo is always snowy), so that an answer follows from its question.
Owns the tables; doesn't know how questions are worded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Climate:
    """One kind of weather, in the words that answers use.

    sky: after "it is". clothes: after "wear". sports: the activities that it's good for.
    """

    sky: str
    degrees: int
    clothes: str
    sports: frozenset[str]
    rain: bool = False
    snow: bool = False
    wind: bool = False
    sun: bool = False


HOT = Climate("hot and dry", 35, "a light shirt and a sun hat", frozenset({"swimming"}), sun=True)
SNOWY = Climate("cold and snowy", 2, "a thick coat and gloves", frozenset({"skiing"}), snow=True)
RAINY = Climate("cool and rainy", 12, "a raincoat and boots", frozenset(), rain=True)
MILD = Climate("mild and cloudy", 18, "a light jacket", frozenset({"hiking"}))
HUMID = Climate("warm and humid", 29, "a thin shirt and sandals", frozenset({"swimming"}), rain=True)
SUNNY = Climate("sunny and warm", 25, "a shirt and sunglasses", frozenset({"swimming", "hiking"}), sun=True)
CLEAR = replace(SUNNY, sky="clear and warm", sun=False)
WINDY = Climate("windy and fresh", 14, "a warm sweater and a scarf", frozenset({"hiking"}), wind=True)

SPORTS = ("swimming", "skiing", "hiking")

_CLIMATES = {
    HOT: ("Cairo", "Dubai", "Phoenix"),
    SNOWY: ("Oslo", "Helsinki", "Reykjavik", "Montreal"),
    RAINY: ("London", "Dublin", "Seattle", "Bergen"),
    MILD: ("Paris", "Berlin", "Vienna", "Tokyo"),
    HUMID: ("Singapore", "Bangkok", "Mumbai"),
    SUNNY: ("Athens", "Lisbon", "Sydney", "Rome", "Madrid"),
    WINDY: ("Chicago", "Wellington", "Edinburgh"),
}
PLACES = {place: climate for climate, places in _CLIMATES.items() for place in places}

# Named once each in questions, so they stay out of the vocabulary and teach the model what to say to an unknown word.
STRANGE_PLACES = tuple(
    "Lima Quito Lagos Accra Hanoi Perth Denver Miami Zurich Milan Naples Seoul Osaka Busan Delhi Kolkata Tehran "
    "Ankara Izmir Sofia Bucharest Budapest Krakow Gdansk Riga Vilnius Minsk Kyiv Odessa Tbilisi Baku Tunis Algiers "
    "Dakar Nairobi Kampala Harare Durban Santiago Bogota Caracas Havana Dallas Houston Austin Memphis Atlanta Detroit "
    "Calgary Ottawa Winnipeg Halifax Lyon Nantes Seville Porto Basel Bonn Leipzig".split()
)

# What it will be like where the question names no place; "" and "today" are SUNNY.
COMING = {
    "tonight": WINDY,
    "tomorrow": MILD,
    "this morning": SUNNY,
    "this afternoon": SUNNY,
    "this evening": WINDY,
    "this weekend": RAINY,
    "next week": SUNNY,
    "on Monday": MILD,
    "on Tuesday": MILD,
    "on Wednesday": MILD,
    "on Thursday": WINDY,
    "on Friday": WINDY,
    "on Saturday": RAINY,
    "on Sunday": RAINY,
}
PRESENT = ("", "today", "right now")
DARK = ("tonight", "this evening")


def climate_of(place: str, time: str) -> Climate:
    """The weather at `place` ("" is here) and `time` ("" is now)."""
    climate = PLACES[place] if place else COMING.get(time, SUNNY)
    return CLEAR if climate is SUNNY and time in DARK else climate
