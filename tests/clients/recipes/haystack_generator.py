"""haystack: OpenAIChatGenerator."""

from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret
from scenarios import API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run


def generator(model=MODEL, api_key=API_KEY, **options):
    return OpenAIChatGenerator(
        model=model,
        api_base_url=BASE_URL,
        api_key=Secret.from_token(api_key),
        generation_kwargs={"temperature": 0},
        max_retries=0,
        **options,
    )


def over_turns(**options):
    history, answers = [], []
    for question in QUESTIONS:
        history.append(ChatMessage.from_user(question))
        history += generator(**options).run(history)["replies"]
        answers.append(history[-1].text)
    return answers


def whole():
    return over_turns()


def streamed():
    return over_turns(streaming_callback=lambda _chunk: None)


class Left(Exception):
    """How a callback ends a stream."""


def leave():
    read = []

    def until_three(chunk):
        read.append(chunk.content)
        if len(read) > 2:
            raise Left

    try:
        generator(ENDLESS, streaming_callback=until_three).run([ChatMessage.from_user("Tell me more.")])
    except Left:
        pass
    return read


def asked(question, **options):
    return generator(**options).run([ChatMessage.from_user(question)])["replies"][0].text


def too_long():
    return asked(LONG_QUESTION)


def unknown_model():
    return asked("Hello", model="no-such-model")


def wrong_key():
    return asked("Hello", api_key="sk-wrong")


run(["haystack-ai", "openai"], [whole, streamed, leave, too_long, unknown_model, wrong_key])
