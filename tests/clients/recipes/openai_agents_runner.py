"""openai-agents: an agent over chat completions, and one over the Responses API."""

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from scenarios import API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run

set_tracing_disabled(True)


def agent(kind=OpenAIChatCompletionsModel, model=MODEL, api_key=API_KEY):
    client = AsyncOpenAI(base_url=BASE_URL, api_key=api_key)
    return Agent(
        name="Weatherman",
        model=kind(model=model, openai_client=client),
        model_settings=ModelSettings(temperature=0),
    )


async def run_over_turns(asked):
    history, answers = [], []
    for question in QUESTIONS:
        result = await Runner.run(asked, [*history, {"role": "user", "content": question}])
        history = result.to_input_list()
        answers.append(result.final_output)
    return answers


async def stream_over_turns(asked):
    history, answers = [], []
    for question in QUESTIONS:
        result = Runner.run_streamed(asked, [*history, {"role": "user", "content": question}])
        async for _event in result.stream_events():
            pass
        history = result.to_input_list()
        answers.append(result.final_output)
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
    result = Runner.run_streamed(agent(model=ENDLESS), "Tell me more.")
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            break
    result.cancel()
    return [event.data.delta]


async def too_long():
    return (await Runner.run(agent(), LONG_QUESTION)).final_output


async def too_long_response():
    return (await Runner.run(agent(OpenAIResponsesModel), LONG_QUESTION)).final_output


async def unknown_model():
    return (await Runner.run(agent(model="no-such-model"), "Hello")).final_output


async def wrong_key():
    return (await Runner.run(agent(api_key="sk-wrong"), "Hello")).final_output


run(
    ["openai-agents", "openai"],
    [whole, streamed, responses_whole, responses_streamed, leave],
    [too_long, too_long_response, unknown_model, wrong_key],
)
