"""autogen: an AssistantAgent, which keeps its own history."""

import asyncio

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import Response
from autogen_agentchat.messages import TextMessage
from autogen_core import CancellationToken
from autogen_core.models import ModelFamily
from autogen_ext.models.openai import OpenAIChatCompletionClient
from scenarios import API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run

ABILITIES = {
    "vision": False,
    "function_calling": False,
    "json_output": False,
    "structured_output": False,
    "family": ModelFamily.UNKNOWN,
}


def agent(model=MODEL, api_key=API_KEY, **options):
    client = OpenAIChatCompletionClient(
        model=model, base_url=BASE_URL, api_key=api_key, model_info=ABILITIES, temperature=0
    )
    return AssistantAgent("weatherman", model_client=client, system_message=None, **options)


def message(text):
    return [TextMessage(content=text, source="user")]


async def said(asked, text):
    return (await asked.on_messages(message(text), CancellationToken())).chat_message.content


async def whole():
    asked = agent()
    return [await said(asked, question) for question in QUESTIONS]


async def streamed():
    asked, answers = agent(model_client_stream=True), []
    for question in QUESTIONS:
        async for event in asked.on_messages_stream(message(question), CancellationToken()):
            if isinstance(event, Response):
                answers.append(event.chat_message.content)
    return answers


async def leave():
    leaving = CancellationToken()
    stream = agent(model=ENDLESS, model_client_stream=True).on_messages_stream(message("Tell me more."), leaving)
    read = [type(await anext(stream)).__name__ for _ in range(3)]
    leaving.cancel()
    try:
        async for _event in stream:
            pass
    except asyncio.CancelledError:
        pass
    return read


async def too_long():
    return await said(agent(), LONG_QUESTION)


async def unknown_model():
    return await said(agent(model="no-such-model"), "Hello")


async def wrong_key():
    return await said(agent(api_key="sk-wrong"), "Hello")


run(
    ["autogen-agentchat", "autogen-ext", "openai"],
    [whole, streamed, leave, too_long, unknown_model, wrong_key],
)
