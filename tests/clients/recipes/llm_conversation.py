"""llm: its command line's own model class, configured as its extra-openai-models.yaml says, in conversations."""

import os
from pathlib import Path

os.environ["LLM_USER_PATH"] = str(Path.home())

import llm
from scenarios import API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run

NAMES = (MODEL, ENDLESS, "no-such-model")
ENTRY = """
- model_id: {name}
  model_name: {name}
  api_base: {url}
  api_key_name: tokenrelay
"""
Path.home().joinpath("extra-openai-models.yaml").write_text("".join(ENTRY.format(name=n, url=BASE_URL) for n in NAMES))


def ask(question, model=MODEL, key=API_KEY, **options):
    return llm.get_model(model).prompt(question, key=key, temperature=0, **options)


def over_turns(**options):
    conversation = llm.get_model(MODEL).conversation()
    return [conversation.prompt(question, key=API_KEY, temperature=0, **options).text() for question in QUESTIONS]


def whole():
    return over_turns(stream=False)


def streamed():
    return over_turns(stream=True)


def leave():
    pieces = iter(ask("Tell me more.", model=ENDLESS))
    read = [next(pieces) for _ in range(3)]
    pieces.close()
    return read


def too_long():
    return ask(LONG_QUESTION, stream=False).text()


def too_long_streamed():
    return ask(LONG_QUESTION).text()


def unknown_model():
    return ask("Hello", model="no-such-model").text()


def wrong_key():
    return ask("Hello", key="sk-wrong").text()


run(["llm", "openai"], [whole, streamed, leave, too_long, too_long_streamed, unknown_model, wrong_key])
