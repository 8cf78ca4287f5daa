"""llm: its command line's own model class, configured as its extra-openai-models.yaml says, in conversations."""

import os
from pathlib import Path

os.environ["LLM_USER_PATH"] = str(Path.home())

import llm
from scenarios import API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run

NAMES = (MODEL, ENDLESS, "no-such-model")
Path.home().joinpath("extra-openai-models.yaml").write_text(
    "".join(f"- model_id: {name}\n  model_name: {name}\n  api_base: {BASE_URL}\n" for name in NAMES)
)


def model(name=MODEL, key=API_KEY):
    found = llm.get_model(name)
    found.key = key
    return found


def over_turns(**options):
    conversation = model().conversation()
    return [conversation.prompt(question, temperature=0, **options).text() for question in QUESTIONS]


def whole():
    return over_turns(stream=False)


def streamed():
    return over_turns(stream=True)


def leave():
    pieces = iter(model(ENDLESS).prompt("Tell me more.", temperature=0))
    read = [next(pieces) for _ in range(3)]
    pieces.close()
    return read


def too_long():
    return model().prompt(LONG_QUESTION, stream=False).text()


def too_long_streamed():
    return model().prompt(LONG_QUESTION).text()


def unknown_model():
    return model("no-such-model").prompt("Hello").text()


def wrong_key():
    return model(key="sk-wrong").prompt("Hello").text()


run(["llm", "openai"], [whole, streamed, leave, too_long, too_long_streamed, unknown_model, wrong_key])
