"""LangChain: ChatOpenAI, over chat completions and over the Responses API; with_structured_output."""

from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from scenarios import API_KEY, BASE_URL, ENDLESS, JSON_QUESTIONS, LONG_QUESTION, MODEL, QUESTIONS, run


class Weather(BaseModel):
    place: str
    weather: str
    degrees: int
    rain: bool


def chat(model=MODEL, api_key=API_KEY, **options):
    return ChatOpenAI(model=model, base_url=BASE_URL, api_key=api_key, temperature=0, **options)


def text(message):
    return message.text if isinstance(message.text, str) else message.text()


def over_turns(ask):
    history, answers = [], []
    for question in QUESTIONS:
        history.append(HumanMessage(question))
        history.append(ask(history))
        answers.append(text(history[-1]))
    return answers


def added(chunks):
    total = None
    for chunk in chunks:
        total = chunk if total is None else total + chunk
    return total


def whole():
    return over_turns(chat().invoke)


def streamed():
    return over_turns(lambda history: added(chat().stream(history)))


def responses_whole():
    return over_turns(chat(use_responses_api=True).invoke)


def responses_streamed():
    return over_turns(lambda history: added(chat(use_responses_api=True).stream(history)))


def objects_over_turns(ask, **options):
    model = chat(**options).with_structured_output(Weather, method="json_schema")
    history, answers = [], []
    for question in JSON_QUESTIONS:
        history.append(HumanMessage(question))
        weather = ask(model, history)
        history.append(AIMessage(weather.model_dump_json()))
        answers.append(weather.model_dump())
    return answers


def structured_whole():
    return objects_over_turns(lambda model, history: model.invoke(history))


def structured_streamed():
    return objects_over_turns(lambda model, history: [*model.stream(history)][-1])


def responses_structured_whole():
    return objects_over_turns(lambda model, history: model.invoke(history), use_responses_api=True)


def responses_structured_streamed():
    return objects_over_turns(lambda model, history: [*model.stream(history)][-1], use_responses_api=True)


def leave():
    stream = chat(model=ENDLESS).stream("Tell me more.")
    read = [next(stream).id for _ in range(3)]
    stream.close()
    return read


def too_long():
    return text(chat().invoke(LONG_QUESTION))


def too_long_streamed():
    return text(added(chat().stream(LONG_QUESTION)))


def too_long_response():
    return text(chat(use_responses_api=True).invoke(LONG_QUESTION))


def unknown_model():
    return text(chat(model="no-such-model").invoke("Hello"))


def wrong_key():
    return text(chat(api_key="sk-wrong").invoke("Hello"))


run(
    ["langchain-openai", "langchain-core"],
    [whole, streamed, responses_whole, responses_streamed, leave],
    [structured_whole, structured_streamed, responses_structured_whole, responses_structured_streamed],
    [too_long, too_long_streamed, too_long_response, unknown_model, wrong_key],
)
