"""smolagents: its model over the turns of a chat, and an agent, whose steps the bundled model can't write."""

from scenarios import API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run
from smolagents import CodeAgent, OpenAIModel
from smolagents.models import ChatMessage, MessageRole


def model(name=MODEL, api_key=API_KEY, **options):
    return OpenAIModel(name, api_base=BASE_URL, api_key=api_key, temperature=0, retry=False, **options)


def user(text):
    return ChatMessage(role=MessageRole.USER, content=[{"type": "text", "text": text}])


def whole():
    history, answers = [], []
    for question in QUESTIONS:
        history.append(user(question))
        history.append(model().generate(history))
        answers.append(history[-1].content)
    return answers


def streamed():
    history, answers = [], []
    for question in QUESTIONS:
        history.append(user(question))
        answers.append("".join(delta.content or "" for delta in model().generate_stream(history)))
        history.append(ChatMessage(role=MessageRole.ASSISTANT, content=[{"type": "text", "text": answers[-1]}]))
    return answers


def agent_steps():
    agent = CodeAgent(tools=[], model=model(max_tokens=16), max_steps=2, verbosity_level=0)
    agent.prompt_templates["system_prompt"] = "Answer."
    agent.run(QUESTIONS[0])
    return [type(step).__name__ for step in agent.memory.steps]


def leave():
    stream = model(ENDLESS).generate_stream([user("Tell me more.")])
    read = [next(stream).content for _ in range(3)]
    stream.close()
    return read


def too_long():
    return model().generate([user(LONG_QUESTION)]).content


def unknown_model():
    return model("no-such-model").generate([user("Hello")]).content


def wrong_key():
    return model(api_key="sk-wrong").generate([user("Hello")]).content


run(
    ["smolagents", "openai"],
    [whole, streamed, agent_steps, leave, too_long, unknown_model, wrong_key],
)
