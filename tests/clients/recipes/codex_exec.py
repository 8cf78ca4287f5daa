"""Codex CLI: `codex exec` and `codex exec resume`, without tools, with instructions that a small model can hold."""

import os
import re
import subprocess
from pathlib import Path

from scenarios import API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run

BINARY = Path(os.environ["CLIENT_FOLDER"], "node_modules", ".bin", "codex")
HOME = Path.home()
PROVIDER = f"""
name = "tokenrelay"
base_url = "{BASE_URL}"
env_key = "KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""
CONFIGURATION = f"""
model_provider = "tokenrelay"
model_instructions_file = "{HOME}/instructions.md"
web_search = "disabled"
include_permissions_instructions = false
include_environment_context = false

[model_providers.tokenrelay]
{PROVIDER}
[features]
shell_tool = false
unified_exec = false
goals = false
multi_agent = false
view_image = false

[tools.experimental_request_user_input]
enabled = false

[skills]
include_instructions = false
"""
(HOME / ".codex").mkdir()
(HOME / ".codex" / "config.toml").write_text(CONFIGURATION)
(HOME / "instructions.md").write_text("Answer.\n")
VERSION = re.search(r"[\d.]+", subprocess.run([BINARY, "--version"], capture_output=True, text=True).stdout)[0]


class Failed(Exception):
    """Codex said that it failed."""


def command(*arguments, model=MODEL):
    return [BINARY, "exec", *arguments, "--skip-git-repo-check", "--model", model, "-o", HOME / "answer.txt"]


def ask(question, *arguments, model=MODEL, key=API_KEY):
    (HOME / "answer.txt").write_text("")
    done = subprocess.run(
        [*command(*arguments, model=model), question],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "KEY": key},
        timeout=60,
    )
    if done.returncode:
        raise Failed("\n".join(line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line))
    return (HOME / "answer.txt").read_text()


def streamed():
    first, *others = QUESTIONS
    return [ask(first), *(ask(question, "resume", "--last") for question in others)]


def leave():
    """Its log tells when the first piece has come: what it prints are whole messages."""
    settings = {**os.environ, "KEY": API_KEY, "RUST_LOG": "codex_otel.log_only=info"}
    asked = [*command(model=ENDLESS), "Tell me more."]
    with subprocess.Popen(asked, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=settings) as running:
        read = next((line for line in running.stderr if "response.output_text.delta" in line), None)
        running.terminate()
    return read


def too_long():
    return ask(LONG_QUESTION)


def unknown_model():
    return ask("Hello", model="no-such-model")


def wrong_key():
    return ask("Hello", key="sk-wrong")


run([], [streamed, leave, too_long, unknown_model, wrong_key], codex=VERSION)
