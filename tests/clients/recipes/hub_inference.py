"""huggingface_hub: InferenceClient."""

from huggingface_hub import InferenceClient
from scenarios import API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run

client = InferenceClient(base_url=BASE_URL, api_key=API_KEY)


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


def leave():
    stream = ask("Tell me more.", model=ENDLESS, stream=True)
    read = [next(stream).id for _ in range(3)]
    stream.close()
    return read


def too_long():
    return ask(LONG_QUESTION).id


def unknown_model():
    return ask("Hello", model="no-such-model").id


def wrong_key():
    return ask("Hello", client=InferenceClient(base_url=BASE_URL, api_key="sk-wrong")).id


run(["huggingface_hub"], [whole, streamed, leave, too_long, unknown_model, wrong_key])
