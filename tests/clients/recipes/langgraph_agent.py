"""LangGraph: a graph of one node that calls the model, its history kept by a checkpointer."""

from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from scenarios import API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run


def agent(model=MODEL, api_key=API_KEY):
    # Its time limit on chunks waits by asyncio.wait_for, which in Python 3.11 loses a cancellation if a chunk comes.
    chat = ChatOpenAI(model=model, base_url=BASE_URL, api_key=api_key, temperature=0, stream_chunk_timeout=None)

    def answer(state):
        return {"messages": [chat.invoke(state["messages"])]}

    async def answer_async(state):
        return {"messages": [await chat.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", RunnableLambda(answer, answer_async))
    graph.add_edge(START, "answer")
    return graph.compile(checkpointer=InMemorySaver())


CHAT = {"configurable": {"thread_id": "1"}}


def asked(question):
    return {"messages": [{"role": "user", "content": question}]}


def whole():
    running = agent()
    return [running.invoke(asked(question), CHAT)["messages"][-1].content for question in QUESTIONS]


def streamed():
    running, answers = agent(), []
    for question in QUESTIONS:
        chunks = running.stream(asked(question), CHAT, stream_mode="messages")
        answers.append("".join(chunk.content for chunk, _ in chunks))
    return answers


async def leave():
    """By asyncio: what closes a synchronous stream waits until the graph's node has read its answer to the end."""
    stream = agent(model=ENDLESS).astream(asked("Tell me more."), CHAT, stream_mode="messages")
    read = [(await anext(stream))[0].id for _ in range(3)]
    await stream.aclose()
    return read


def too_long():
    return agent().invoke(asked(LONG_QUESTION), CHAT)["messages"][-1].content


def unknown_model():
    return agent(model="no-such-model").invoke(asked("Hello"), CHAT)["messages"][-1].content


def wrong_key():
    return agent(api_key="sk-wrong").invoke(asked("Hello"), CHAT)["messages"][-1].content


run(["langgraph", "langchain-openai"], [whole, streamed, leave, too_long, unknown_model, wrong_key])
