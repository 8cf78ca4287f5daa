"""The clients: packages, recipe, and expected errors of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

TOO_LONG: Final = r"maximum context length is \d+ tokens"
EXPECTED_ERRORS: Final = {
    "too_long": rf"BadRequestError.*{TOO_LONG}",
    "unknown_model": r"NotFoundError.*no-such-model",
    "wrong_key": r"AuthenticationError",
}
"""What a caller must be able to tell by, as most clients raise it: OpenAI's own classes."""
OWN: Final = {
    "too_long": rf"400.*{TOO_LONG}",
    "unknown_model": r"404.*no-such-model",
    "wrong_key": r"401",
}
"""Of clients with one class for all statuses."""
CODEX: Final = {"too_long": r"ran out of room in the model's context window", "unknown_model": "no-such-model"}
"""Codex has words of its own for an overflow, and prints the gateway's message of others, without its status."""


@dataclass(frozen=True, slots=True)
class Client:
    """One row. `agent` is a pattern of the User-Agent that its calls carry."""

    name: str
    recipe: str
    agent: str
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    errors: dict[str, str] = field(default_factory=dict)
    shares: str = ""
    """The client in whose environment it runs, where that isn't its own."""
    through: Literal["", "nginx", "litellm"] = ""
    """What stands between it and the gateway."""

    without: tuple[str, ...] = ()
    """Scenarios of its recipe that don't reach the gateway."""
    exact: bool = True
    """Whether it can ask for temperature 0, and so its answers are known."""

    @property
    def from_npm(self) -> bool:
        return "npm" in self.programs

    @property
    def environment(self) -> str:
        return self.shares or self.name

    def expected_error(self, scenario: str) -> str | None:
        """The pattern of the error that the scenario must end with; None for one that must succeed."""
        found = (kind for kind in EXPECTED_ERRORS if scenario.startswith(kind))
        kind = next(found, None)
        return kind and self.errors.get(kind, EXPECTED_ERRORS[kind])


_PYTHON: Final = (
    Client("openai", "openai_chat.py", r"^OpenAI/Python", ("openai",)),
    Client("openai-parse", "openai_parse.py", r"^OpenAI/Python", ("openai",), shares="openai"),
    Client("openai-asyncio", "openai_asyncio.py", r"^AsyncOpenAI/Python", ("openai",), shares="openai"),
    Client(
        "openai-agents",
        "openai_agents_runner.py",
        r"^Agents/Python",
        ("openai-agents",),
    ),
    Client(
        "langchain",
        "langchain_openai_chat.py",
        r"langchain|OpenAI/Python",
        ("langchain-openai", "langgraph"),
        errors={"too_long": rf"ContextOverflowError.*{TOO_LONG}"},
    ),
    Client(
        "langgraph",
        "langgraph_agent.py",
        r"langchain|OpenAI/Python",
        ("langchain-openai", "langgraph"),
        errors={"too_long": rf"ContextOverflowError.*{TOO_LONG}"},
        shares="langchain",
    ),
    Client(
        "pydantic-ai",
        "pydantic_ai_agent.py",
        r"^pydantic-ai/",
        ("pydantic-ai-slim[openai]",),
        errors={**OWN, "too_long": rf"ModelContextWindowExceededError.*{TOO_LONG}"},
    ),
    Client("instructor", "instructor_chat.py", r"OpenAI/Python", ("instructor",)),
    Client("autogen", "autogen_agent.py", r"^AsyncOpenAI/Python", ("autogen-agentchat", "autogen-ext[openai]")),
    Client(
        "litellm",
        "litellm_completion.py",
        r"OpenAI/Python|litellm",
        ("litellm[proxy]",),
        errors={"too_long": r"ContextWindowExceededError"},
    ),
    Client(
        "litellm-proxy",
        "openai_relayed.py",
        r"OpenAI/Python|litellm",
        ("litellm[proxy]",),
        shares="litellm",
        through="litellm",
        without=("wrong_key",),
        errors={"too_long": r"BadRequestError.*ContextWindowExceededError"},
    ),
    Client("llama-index", "llama_index_chat.py", r"OpenAI/Python", ("llama-index-llms-openai-like",)),
    Client("haystack", "haystack_generator.py", r"OpenAI/Python", ("haystack-ai",)),
    Client("smolagents", "smolagents_model.py", r"OpenAI/Python", ("smolagents[openai]",)),
    Client("llm", "llm_conversation.py", r"OpenAI/Python", ("llm",)),
    Client(
        "huggingface_hub",
        "hub_inference.py",
        r"hf_hub/",
        ("huggingface_hub",),
        errors={**OWN, "too_long": EXPECTED_ERRORS["too_long"]},
    ),
    Client(
        "guidellm",
        "guidellm_benchmark.py",
        r"^python-httpx",
        ("guidellm",),
        errors={"unknown_model": r"404 Not Found", "wrong_key": r"401 Unauthorized"},
    ),
    Client(
        "lm-eval",
        "lm_eval_harness.py",
        r"^python-requests/",
        ("lm-eval[api]", "transformers"),
        errors={"unknown_model": r"404", "wrong_key": r"401"},
    ),
    Client("nginx", "openai_relayed.py", r"OpenAI/Python", ("openai",), ("nginx",), shares="openai", through="nginx"),
)
_OTHERS: Final = (
    Client("openai-npm", "openai_chat.mjs", r"^OpenAI/JS", ("openai",), ("node", "npm")),
    Client(
        "langchain-npm",
        "langchain_chat.mjs",
        r"langchainjs|OpenAI/JS",
        ("@langchain/openai", "@langchain/core"),
        ("node", "npm"),
        errors={"too_long": rf"ContextOverflowError.*{TOO_LONG}"},
    ),
    Client(
        "ai-sdk",
        "ai_sdk.mjs",
        r"ai-sdk/",
        ("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible"),
        ("node", "npm"),
        errors=OWN,
    ),
    Client(
        "codex", "codex_exec.py", r"codex", ("@openai/codex",), ("node", "npm"), errors={**OWN, **CODEX}, exact=False
    ),
    Client("jdk", "JdkHttpClient.java", r"^Java-http-client/", programs=("java",), errors=OWN),
    Client("curl", "curl_command.py", r"^curl/", programs=("curl",), errors=OWN),
)
CLIENTS: Final = (*_PYTHON, *_OTHERS)
