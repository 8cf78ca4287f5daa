"""guidellm: its command line, on a conversation of three turns."""

import json
import os
import subprocess
import sys
from pathlib import Path

from scenarios import API_KEY, BASE_URL, MODEL, QUESTIONS, run

BINARY = Path(sys.executable).with_name("guidellm")
HOME = Path.home()


class Failed(Exception):
    """guidellm counted a request as failed."""


def benchmark(questions, stream=True, model=MODEL, key=API_KEY):
    """What was answered, turn by turn."""
    data, report = HOME / "conversations.jsonl", HOME / "report.json"
    data.write_text(json.dumps({f"prompt_{turn}": question for turn, question in enumerate(questions)}) + "\n")
    backend = {
        "kind": "openai_http",
        "target": BASE_URL.removesuffix("/v1"),
        "model": model,
        "api_key": key,
        "stream": stream,
        "validate_backend": False,
        "extras": {"body": {"temperature": 0}},
    }
    options = {
        "backend": backend,
        "profile": {"kind": "synchronous"},
        "constraint": {"kind": "max_requests", "count": len(questions)},
        "data": {"kind": "json_file", "path": str(data)},
        "tokenizer": {"kind": "hf_auto", "model": os.environ["CLIENT_TOKENIZER"]},
        "output": {"kind": "json", "path": str(report)},
    }
    command = [BINARY, "run", "--disable-console"]
    for name, value in options.items():
        command += [f"--{name}", json.dumps(value)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise Failed(done.stderr[-500:])
    requests = json.loads(report.read_text())["benchmarks"][0]["requests"]
    if requests["errored"] or not requests["successful"]:
        raise Failed(done.stderr[-500:] + str([each["info"].get("error") for each in requests["errored"]]))
    return [each["output"] for each in sorted(requests["successful"], key=lambda each: each["request_start_time"])]


def whole():
    return benchmark(QUESTIONS, stream=False)


def streamed():
    return benchmark(QUESTIONS)


def unknown_model():
    return benchmark(["Hello"], model="no-such-model")


def wrong_key():
    return benchmark(["Hello"], key="sk-wrong")


run(["guidellm"], [whole, streamed, unknown_model, wrong_key])
