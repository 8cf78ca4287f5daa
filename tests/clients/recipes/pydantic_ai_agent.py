"""pydantic-ai: an agent over chat completions, and one over the Responses API."""

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from scenarios import API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run


def agent(kind=OpenAIChatModel, model=MODEL, api_key=API_KEY):
    provider = OpenAIProvider(base_url=BASE_URL, api_key=api_key)
    return Agent(kind(model, provider=provider), model_settings={"temperature": 0})


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
    [too_long, too_long_response, unknown_model, wrong_key],
)
