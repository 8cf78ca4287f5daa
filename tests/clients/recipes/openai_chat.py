"""openai: chat completions, the Responses API and completions."""

from openai import OpenAI
from scenarios import API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run

client = OpenAI(base_url=BASE_URL, api_key=API_KEY)


def ask(question, model=MODEL, client=client, **options):
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(model=model, messages=messages, temperature=0, **options)


def whole():
    messages, answers = [], []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        completion = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
        messages.append(completion.choices[0].message)
        answers.append(completion.choices[0].message.content)
    return answers


def streamed():
    messages, answers = [], []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        with client.chat.completions.stream(model=MODEL, messages=messages, temperature=0) as stream:
            message = stream.get_final_completion().choices[0].message
        messages.append(message.model_dump())
        answers.append(message.content)
    return answers


def responses_whole():
    history, answers = [], []
    for question in QUESTIONS:
        history.append({"role": "user", "content": question})
        response = client.responses.create(model=MODEL, input=history, temperature=0)
        history += response.output
        answers.append(response.output_text)
    return answers


def responses_streamed():
    history, answers = [], []
    for question in QUESTIONS:
        history.append({"role": "user", "content": question})
        with client.responses.stream(model=MODEL, input=history, temperature=0) as stream:
            response = stream.get_final_response()
        history += [item.model_dump() for item in response.output]
        answers.append(response.output_text)
    return answers


def completion():
    return client.completions.create(model=MODEL, prompt=QUESTIONS[0], temperature=0).choices[0].text


def leave():
    with ask("Tell me more.", model=ENDLESS, stream=True) as stream:
        return [next(stream).id for _ in range(3)]


def leave_response():
    asked = {"model": ENDLESS, "input": "Tell me more.", "temperature": 0}
    with client.responses.create(**asked, stream=True) as stream:
        return [next(stream).type for _ in range(6)]


def too_long():
    return ask(LONG_QUESTION).choices[0].message.content


def too_long_streamed():
    return [chunk.id for chunk in ask(LONG_QUESTION, stream=True)]


def too_long_response():
    return client.responses.create(model=MODEL, input=LONG_QUESTION).output_text


def too_long_response_streamed():
    return [event.type for event in client.responses.create(model=MODEL, input=LONG_QUESTION, stream=True)]


def too_long_completion():
    return client.completions.create(model=MODEL, prompt=LONG_QUESTION).choices[0].text


def unknown_model():
    return ask("Hello", model="no-such-model").id


def wrong_key():
    return ask("Hello", client=client.with_options(api_key="sk-wrong")).id


def models():
    return [model.id for model in client.models.list()]


run(
    ["openai"],
    [whole, streamed, responses_whole, responses_streamed, completion, models, leave, leave_response],
    [too_long, too_long_streamed, too_long_response, too_long_response_streamed, too_long_completion],
    [unknown_model, wrong_key],
)
