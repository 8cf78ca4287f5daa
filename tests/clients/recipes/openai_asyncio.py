"""openai's asyncio client."""

from openai import AsyncOpenAI
from scenarios import API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run

client = AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY)


async def ask(question, model=MODEL, client=client, **options):
    messages = [{"role": "user", "content": question}]
    return await client.chat.completions.create(model=model, messages=messages, temperature=0, **options)


async def whole():
    messages, answers = [], []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        completion = await client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
        messages.append(completion.choices[0].message)
        answers.append(completion.choices[0].message.content)
    return answers


async def streamed():
    messages, answers = [], []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        stream = await client.chat.completions.create(model=MODEL, messages=messages, temperature=0, stream=True)
        answer = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
        messages.append({"role": "assistant", "content": answer})
        answers.append(answer)
    return answers


async def leave():
    async with await ask("Tell me more.", model=ENDLESS, stream=True) as stream:
        return [(await anext(stream)).id for _ in range(3)]


async def too_long():
    return (await ask(LONG_QUESTION)).id


async def unknown_model():
    return (await ask("Hello", model="no-such-model")).id


async def wrong_key():
    return (await ask("Hello", client=client.with_options(api_key="sk-wrong"))).id


run(["openai"], [whole, streamed, leave, too_long, unknown_model, wrong_key])
