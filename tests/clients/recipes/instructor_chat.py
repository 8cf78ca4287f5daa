"""instructor: a patched openai client, without a response model, and with one in its JSON-schema mode."""

import instructor
from openai import OpenAI
from pydantic import BaseModel
from scenarios import API_KEY, BASE_URL, ENDLESS, JSON_QUESTIONS, LONG_QUESTION, MODEL, QUESTIONS, run


class Weather(BaseModel):
    place: str
    weather: str
    degrees: int
    rain: bool


def ask(messages, model=MODEL, api_key=API_KEY, **options):
    client = instructor.from_openai(OpenAI(base_url=BASE_URL, api_key=api_key), mode=instructor.Mode.MD_JSON)
    asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return client.chat.completions.create(
        model=model, messages=asked, response_model=None, temperature=0, max_retries=0, **options
    )


def whole():
    messages, answers = [], []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        message = ask(messages).choices[0].message
        messages.append(message.model_dump())
        answers.append(message.content)
    return answers


def streamed():
    messages, answers = [], []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        answer = "".join(chunk.choices[0].delta.content or "" for chunk in ask(messages, stream=True) if chunk.choices)
        messages.append({"role": "assistant", "content": answer})
        answers.append(answer)
    return answers


def schema_client():
    return instructor.from_openai(OpenAI(base_url=BASE_URL, api_key=API_KEY), mode=instructor.Mode.JSON_SCHEMA)


def objects_over_turns(ask_for_object):
    messages, answers = [], []
    for question in JSON_QUESTIONS:
        messages.append({"role": "user", "content": question})
        weather = ask_for_object({"model": MODEL, "messages": messages, "temperature": 0, "max_retries": 0})
        messages.append({"role": "assistant", "content": weather.model_dump_json()})
        answers.append(weather.model_dump())
    return answers


def structured_whole():
    client = schema_client()
    return objects_over_turns(lambda asked: client.chat.completions.create(**asked, response_model=Weather))


def structured_streamed():
    client = schema_client()
    return objects_over_turns(
        lambda asked: [*client.chat.completions.create_partial(**asked, response_model=Weather)][-1]
    )


def leave():
    with ask("Tell me more.", model=ENDLESS, stream=True) as stream:
        return [next(stream).id for _ in range(3)]


def too_long():
    return ask(LONG_QUESTION).id


def unknown_model():
    return ask("Hello", model="no-such-model").id


def wrong_key():
    return ask("Hello", api_key="sk-wrong").id


run(
    ["instructor", "openai"],
    [whole, streamed, structured_whole, structured_streamed, leave, too_long, unknown_model, wrong_key],
)
