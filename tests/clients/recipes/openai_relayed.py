"""openai's chat completions where a proxy stands between: pieces must come through as they are written."""

import time

from openai import OpenAI
from scenarios import API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, PROXY, QUESTIONS, run

client = OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)


def ask(messages, model=MODEL, client=client, **options):
    asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return client.chat.completions.create(model=model, messages=asked, temperature=0, **options)


def whole():
    messages, answers = [], []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        message = ask(messages).choices[0].message
        messages.append(message)
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


def unbuffered():
    """A piece comes long before the answer's end."""
    began = time.monotonic()
    with ask("Tell me more.", model=ENDLESS, max_tokens=1000, stream=True) as stream:
        next(stream)
        first = time.monotonic() - began
        for _chunk in stream:
            pass
    whole = time.monotonic() - began
    if first > whole / 2:
        raise TimeoutError(f"the first piece came after {first:.2f} s, the last one after {whole:.2f} s")
    return [first, whole]


def leave():
    with ask("Tell me more.", model=ENDLESS, stream=True) as stream:
        return [next(stream).id for _ in range(3)]


def too_long():
    return ask(LONG_QUESTION).id


def too_long_streamed():
    return [chunk.id for chunk in ask(LONG_QUESTION, stream=True)]


def unknown_model():
    return ask("Hello", model="no-such-model").id


def wrong_key():
    return ask("Hello", client=client.with_options(api_key="sk-wrong")).id


run(["openai"], [whole, streamed, unbuffered, leave, too_long, too_long_streamed, unknown_model, wrong_key], **PROXY)
