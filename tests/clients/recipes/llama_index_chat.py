"""llama-index: OpenAILike with a chat engine's memory."""

from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from scenarios import API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run


def model(name=MODEL, api_key=API_KEY):
    return OpenAILike(
        model=name,
        api_base=BASE_URL,
        api_key=api_key,
        is_chat_model=True,
        context_window=2048,
        temperature=0,
        max_retries=0,
    )


def whole():
    engine = SimpleChatEngine.from_defaults(llm=model())
    return [engine.chat(question).response for question in QUESTIONS]


def streamed():
    engine = SimpleChatEngine.from_defaults(llm=model())
    return ["".join(engine.stream_chat(question).response_gen) for question in QUESTIONS]


def leave():
    stream = model(ENDLESS).stream_chat([ChatMessage(content="Tell me more.")])
    read = [next(stream).delta for _ in range(3)]
    stream.close()
    return read


def completion():
    return model().complete(QUESTIONS[0]).text


def too_long():
    return model().chat([ChatMessage(content=LONG_QUESTION)]).message.content


def unknown_model():
    return model("no-such-model").chat([ChatMessage(content="Hello")]).message.content


def wrong_key():
    return model(api_key="sk-wrong").chat([ChatMessage(content="Hello")]).message.content


run(
    ["llama-index-llms-openai-like", "llama-index-core", "openai"],
    [whole, streamed, completion, leave, too_long, unknown_model, wrong_key],
)
