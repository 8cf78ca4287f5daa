"""curl: HTTP/1.1, an offered upgrade to HTTP/2, and HTTP/1.0."""

import json
import re
import subprocess

from scenarios import API_KEY, BASE_URL, ENDLESS, LONG_QUESTION, MODEL, QUESTIONS, run

VERSION = re.search(r"curl (\S+)", subprocess.run(["curl", "--version"], capture_output=True, text=True).stdout)[1]


class Refused(Exception):
    """The gateway's answer had an error status."""


def command(body, *options, key=API_KEY):
    return [
        *["curl", "--silent", "--show-error", "--no-buffer", "--max-time", "60", f"{BASE_URL}/chat/completions"],
        *["--header", "Content-Type: application/json", "--header", f"Authorization: Bearer {key}"],
        *["--data", json.dumps({"model": MODEL, "temperature": 0, **body}), *options],
    ]


def ask(messages, *options, key=API_KEY, **body):
    body["messages"] = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    asked = command(body, "--write-out", "\n%{http_code}", *options, key=key)
    answer, _, status = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.rpartition("\n")
    if status != "200":
        raise Refused(f"status {status}: {answer}")
    return answer


def over_turns(read, *options, **body):
    messages, answers = [], []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        answers.append(read(ask(messages, *options, **body)))
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def whole_answer(answer):
    return json.loads(answer)["choices"][0]["message"]["content"]


def streamed_answer(events):
    chunks = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def whole():
    return over_turns(whole_answer)


def streamed():
    return over_turns(streamed_answer, stream=True)


def http2_whole():
    return over_turns(whole_answer, "--http2")


def http2_streamed():
    return over_turns(streamed_answer, "--http2", stream=True)


def http10_whole():
    return over_turns(whole_answer, "--http1.0")


def http10_streamed():
    return over_turns(streamed_answer, "--http1.0", stream=True)


def leave():
    body = {"model": ENDLESS, "messages": [{"role": "user", "content": "Tell me more."}], "stream": True}
    with subprocess.Popen(command(body), stdout=subprocess.PIPE, text=True) as asked:
        read = [asked.stdout.readline() for _ in range(3)]
        asked.terminate()
    return read


def too_long():
    return ask(LONG_QUESTION)


def too_long_streamed():
    return ask(LONG_QUESTION, stream=True)


def unknown_model():
    return ask("Hello", model="no-such-model")


def wrong_key():
    return ask("Hello", key="sk-wrong")


run(
    [],
    [whole, streamed, http2_whole, http2_streamed, http10_whole, http10_streamed, leave],
    [too_long, too_long_streamed, unknown_model, wrong_key],
    curl=VERSION,
)
