"""openai: answers that are objects, by both APIs, the worker killed in the middle of some; log-probabilities."""

from typing import Annotated, Literal

from openai import OpenAI
from pydantic import BaseModel, Field
from scenarios import API_KEY, BASE_URL, DAYS, DAYS_QUESTION, ENDLESS, JSON_QUESTIONS, MODEL, QUESTIONS, SEED, run

client = OpenAI(base_url=BASE_URL, api_key=API_KEY)


class Weather(BaseModel):
    place: str
    weather: str
    degrees: int
    rain: bool


class Forecast(BaseModel):
    days: Annotated[list[Literal["sun", "rain", "snow"]], Field(min_length=DAYS, max_length=DAYS)]


def structured_whole():
    messages, answers = [], []
    for question in JSON_QUESTIONS:
        messages.append({"role": "user", "content": question})
        completion = client.chat.completions.parse(
            model=MODEL, messages=messages, temperature=0, response_format=Weather
        )
        messages.append(completion.choices[0].message)
        answers.append(completion.choices[0].message.parsed.model_dump())
    return answers


def structured_streamed():
    messages, answers = [], []
    for question in JSON_QUESTIONS:
        messages.append({"role": "user", "content": question})
        asked = {"model": MODEL, "messages": messages, "temperature": 0, "response_format": Weather}
        with client.chat.completions.stream(**asked) as stream:
            message = stream.get_final_completion().choices[0].message
        messages.append({"role": "assistant", "content": message.content})
        answers.append(message.parsed.model_dump())
    return answers


def responses_structured_whole():
    history, answers = [], []
    for question in JSON_QUESTIONS:
        history.append({"role": "user", "content": question})
        response = client.responses.parse(model=MODEL, input=history, temperature=0, text_format=Weather)
        history += response.output
        answers.append(response.output_parsed.model_dump())
    return answers


def responses_structured_streamed():
    history, answers = [], []
    for question in JSON_QUESTIONS:
        history.append({"role": "user", "content": question})
        with client.responses.stream(model=MODEL, input=history, temperature=0, text_format=Weather) as stream:
            response = stream.get_final_response()
        history.append({"role": "assistant", "content": response.output_text})
        answers.append(response.output_parsed.model_dump())
    return answers


def killed_structured():
    messages = [{"role": "user", "content": DAYS_QUESTION}]
    completion = client.chat.completions.parse(model=ENDLESS, messages=messages, seed=SEED, response_format=Forecast)
    return completion.choices[0].message.parsed.days


def killed_structured_stream():
    messages = [{"role": "user", "content": DAYS_QUESTION}]
    asked = {"model": ENDLESS, "messages": messages, "seed": SEED, "response_format": Forecast}
    with client.chat.completions.stream(**asked) as stream:
        return stream.get_final_completion().choices[0].message.parsed.days


def killed_structured_response():
    asked = {"model": ENDLESS, "input": DAYS_QUESTION, "extra_body": {"seed": SEED}, "text_format": Forecast}
    return client.responses.parse(**asked).output_parsed.days


FIRST = [{"role": "user", "content": QUESTIONS[0]}]
SCORED = {"model": MODEL, "messages": FIRST, "temperature": 0, "logprobs": True, "top_logprobs": 2}
RESPONSE = {"model": MODEL, "input": FIRST, "temperature": 0, "top_logprobs": 2}
INCLUDE = ["message.output_text.logprobs"]


def scores(tokens):
    return [[token.token, token.logprob, len(token.top_logprobs)] for token in tokens]


def logprobs():
    return scores(client.chat.completions.create(**SCORED).choices[0].logprobs.content)


def logprobs_stream():
    chunks = client.chat.completions.create(**SCORED, stream=True)
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.logprobs]
    return [score for choice in choices for score in scores(choice.logprobs.content)]


def logprobs_response():
    response = client.responses.create(**RESPONSE, include=INCLUDE)
    return scores(response.output[0].content[0].logprobs)


def logprobs_response_stream():
    deltas = []
    with client.responses.stream(**RESPONSE, include=INCLUDE) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                deltas += scores(event.logprobs)
        assert deltas == scores(stream.get_final_response().output[0].content[0].logprobs)
    return deltas


run(
    ["openai"],
    [structured_whole, structured_streamed, responses_structured_whole, responses_structured_streamed],
    [killed_structured, killed_structured_stream, killed_structured_response],
    [logprobs, logprobs_stream, logprobs_response, logprobs_response_stream],
)
