"""litellm as a library: completion() and responses()."""

import litellm
from scenarios import API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run

litellm.suppress_debug_info = True


def ask(messages, model=MODEL, api_key=API_KEY, **options):
    asked = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return litellm.completion(
        model=f"openai/{model}", messages=asked, api_base=BASE_URL, api_key=api_key, temperature=0, **options
    )


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
        chunks = list(ask(messages, stream=True))
        message = litellm.stream_chunk_builder(chunks, messages=messages).choices[0].message
        messages.append(message.model_dump())
        answers.append(message.content)
    return answers


def responses_whole():
    history, answers = [], []
    for question in QUESTIONS:
        history.append({"role": "user", "content": question})
        response = litellm.responses(
            model=f"openai/{MODEL}", input=history, api_base=BASE_URL, api_key=API_KEY, temperature=0
        )
        history += [item.model_dump() for item in response.output]
        answers.append(response.output[0].content[0].text)
    return answers


def leave():
    stream = ask("Tell me more.", model=ENDLESS, stream=True)
    read = [next(stream).id for _ in range(3)]
    stream.completion_stream.close()
    return read


def too_long():
    return ask(LONG_QUESTION).choices[0].message.content


def too_long_streamed():
    return [chunk.id for chunk in ask(LONG_QUESTION, stream=True)]


def unknown_model():
    return ask("Hello", model="no-such-model").id


def wrong_key():
    return ask("Hello", api_key="sk-wrong").id


run(
    ["litellm", "openai"],
    [whole, streamed, responses_whole, leave],
    [too_long, too_long_streamed, unknown_model, wrong_key],
)
