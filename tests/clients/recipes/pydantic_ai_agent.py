"""pydantic-ai: an agent over chat completions, and one over the Responses API; answers as text and as objects."""

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from scenarios import API_KEY, BASE_URL, ENDLESS, JSON_QUESTIONS, LONG_QUESTION, MODEL, QUESTIONS, run


class Weather(BaseModel):
    place: str
    weather: str
    degrees: int
    rain: bool


def agent(kind=OpenAIChatModel, model=MODEL, api_key=API_KEY, output_type=str):
    provider = OpenAIProvider(base_url=BASE_URL, api_key=api_key)
    return Agent(kind(model, provider=provider), model_settings={"temperature": 0}, output_type=output_type)


async def run_over_turns(asked):
    history, answers = [], []
    for question in QUESTIONS:
        result = await asked.run(question, message_history=history)
        history = result.all_messages()
        answers.append(result.output)
    return answers


async def stream_over_turns(asked):
    history, answers = [], []
    for question in QUESTIONS:
        async with asked.run_stream(question, message_history=history) as result:
            answers.append("".join([piece async for piece in result.stream_text(delta=True)]))
        history = result.all_messages()
    return answers


async def whole():
    return await run_over_turns(agent())


async def streamed():
    return await stream_over_turns(agent())


async def responses_whole():
    return await run_over_turns(agent(OpenAIResponsesModel))


async def responses_streamed():
    return await stream_over_turns(agent(OpenAIResponsesModel))


async def objects_over_turns(kind):
    asked, history, answers = agent(kind, output_type=NativeOutput(Weather)), [], []
    for question in JSON_QUESTIONS:
        result = await asked.run(question, message_history=history)
        history = result.all_messages()
        answers.append(result.output.model_dump())
    return answers


async def streamed_objects_over_turns(kind):
    asked, history, answers = agent(kind, output_type=NativeOutput(Weather)), [], []
    for question in JSON_QUESTIONS:
        async with asked.run_stream(question, message_history=history) as result:
            answers.append([weather.model_dump() async for weather in result.stream_output()][-1])
        history = result.all_messages()
    return answers


async def structured_whole():
    return await objects_over_turns(OpenAIChatModel)


async def structured_streamed():
    return await streamed_objects_over_turns(OpenAIChatModel)


async def responses_structured_whole():
    return await objects_over_turns(OpenAIResponsesModel)


async def responses_structured_streamed():
    return await streamed_objects_over_turns(OpenAIResponsesModel)


async def leave():
    async with agent(model=ENDLESS).run_stream("Tell me more.") as result:
        async for piece in result.stream_text(delta=True):
            return [piece]


async def too_long():
    return (await agent().run(LONG_QUESTION)).output


async def too_long_response():
    return (await agent(OpenAIResponsesModel).run(LONG_QUESTION)).output


async def unknown_model():
    return (await agent(model="no-such-model").run("Hello")).output


async def wrong_key():
    return (await agent(api_key="sk-wrong").run("Hello")).output


run(
    ["pydantic-ai-slim", "openai"],
    [whole, streamed, responses_whole, responses_streamed, leave],
    [structured_whole, structured_streamed, responses_structured_whole, responses_structured_streamed],
    [too_long, too_long_response, unknown_model, wrong_key],
)
