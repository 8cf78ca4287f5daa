"""The trace of a request, and its output at 80 columns."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from rich.cells import cell_len
from rich.console import Console

from tests.streams import REQUEST_ID, whole_streams
from tokenrelay.cli.client.trace import print_trace
from tokenrelay.cli.terminal.output import visible
from tokenrelay.producer import Producer
from tokenrelay.producer._core.drivers import Driver
from tokenrelay.producer.trace import FIELDS, Kind, as_json, trace_of, traced
from tokenrelay.shared.errors import RequestError, RequestNotFound, StreamExpired, StreamGap
from tokenrelay.shared.store.record import RequestRecord
from tokenrelay.shared.wire.entries import Ended, EntryId, Migrated, Queued, Started, State, Token, Unknown, Usage
from tokenrelay.testing import ScriptedWorker, answers, fails, stalls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fakeredis import FakeRedis

    from tokenrelay.producer.trace import Trace
    from tokenrelay.shared.wire.entries import AnyEntry, Entry
    from tokenrelay.testing import Script

BEGIN_US: Final = 1_763_812_800_000_000  # 2025-11-22 12:00 UTC
TEXTS: Final = ("It", " is", " sunny", " and", " warm", ".")
STORED: Final = {
    "state": "completed",
    "request": json.dumps({"prompt": "What is the weather today?"}),
    "prompt_ids": "[33, 19, 11, 20, 40, 8, 2]",
    "prompt_texts": json.dumps(["What", "is", "the", "weather", "today", "?", "<end>"]),
}
PAGE: Final = """\
request rrrrrrrrrrrrrrrrrrrrrr  completed (stop), model weather

1  Input text        1 prompt           What is the weather today?
2  Tokenization      7 tokens           What | is | the | weather | today | ? |
                                        <end>
3  Model generation  6 tokens streamed  It | is | sunny | and | warm | .
4  Output assembly   1 text             It is sunny and warm.

Prediction trace: 8 layers
   layer                       data                          Redis time       ms
   Queued                                                    12:00:00.000   +0.0
1  Tokenization                1 prompt → 7 tokens           12:00:00.008   +8.0
2  Initial Token Generation    "It"                          12:00:00.020  +12.0
3  Streaming Token Generation  " is"                         12:00:00.030  +10.0
4  Streaming Token Generation  " sunny"                      12:00:00.040  +10.0
5  Streaming Token Generation  " and"                        12:00:00.050  +10.0
6  Streaming Token Generation  " warm"                       12:00:00.060  +10.0
7  Streaming Token Generation  "."                           12:00:00.070  +10.0
8  Output Assembly             6 tokens → 1 text             12:00:00.080  +10.0

queue wait            8.0 ms
time to first token  20.0 ms
between tokens       10.0 ms  mean; median 10.0 ms, at most 10.0 ms
total                80.0 ms
The reader saw the first word 60.0 ms before the whole answer: after 20.0 ms
instead of 80.0 ms (4.0 × sooner).
"""


def at(ms: float) -> int:
    return BEGIN_US + int(ms * 1000)


def stream(*texts: str) -> list[Entry]:
    """A whole stream: token N at 10 + 10·N ms, the end 10 ms after the last."""
    tokens = [Token(index, text, 100 + index, at(10 + 10 * index)) for index, text in enumerate(texts, 1)]
    count = len(texts)
    end = Ended(EntryId(count, 1), at(20 + 10 * count), State.COMPLETED, "stop", "", Usage(7, count))
    started = Started(EntryId(0, 2), at(8), "w1", 1, "weather", 7, 42)
    return [Queued(EntryId(0, 1), at(0), 1), started, *tokens, end]


def trace(entries: Sequence[AnyEntry], **stored: str) -> Trace:
    return trace_of(REQUEST_ID, record(**stored), entries, at(500))


def record(**stored: str) -> RequestRecord:
    held = {**STORED, **stored}
    return RequestRecord(FIELDS, [held[field] for field in FIELDS])


def page(shown: Trace, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, highlight=False, emoji=False)
    with console.capture() as captured:
        print_trace(console, shown)
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def traced_on(redis: FakeRedis, script: Script, prompt: str = "Hello you") -> Trace:
    """The trace of a request that a scripted worker was given."""
    generation = Producer(connection=redis).submit(prompt)
    ScriptedWorker(redis, default=script).answer_queued()
    return Driver(redis).run(traced(generation.request_id))


def test_the_page_of_the_demos_first_question() -> None:
    assert page(trace(stream(*TEXTS))) == PAGE


def test_the_eight_layers_and_four_stages() -> None:
    shown = trace(stream(*TEXTS))
    assert shown.layers == 8
    kinds = [line.kind for line in shown.lines if line.layer]
    assert kinds == [Kind.TOKENIZATION, Kind.INITIAL, *[Kind.STREAMING] * 5, Kind.ASSEMBLY]
    assert [stage.shape for stage in shown.stages] == ["1 prompt", "7 tokens", "6 tokens streamed", "1 text"]
    latency = shown.latency
    assert (latency.queue_wait_ms, latency.ttft_ms, latency.total_ms) == (8, 20, 80)
    assert (latency.inter_token_ms, latency.sooner_ms) == ((10,) * 5, 60)


def test_an_event_of_a_later_version_is_no_line() -> None:
    begin, end = stream(*TEXTS)[:4], Ended(EntryId(2, 2), at(80), State.COMPLETED, "stop", "", Usage(7, 2))
    assert page(trace([*begin, Unknown(EntryId(2, 1), at(75), "preempted"), end])) == page(
        trace([*begin, replace(end, entry_id=EntryId(2, 1))])
    )


def test_the_first_word_is_the_first_that_can_be_seen() -> None:
    shown = trace(stream("", " \n", "It"))
    assert (shown.latency.ttft_ms, shown.latency.first_word_ms) == (20, 40)
    assert '"It"' in page(shown)
    *tokens, end = stream("", "")
    assert isinstance(end, Ended)
    held = trace([*tokens, replace(end, text="It")])
    assert "No word reached the reader." in page(held)
    assert held.stages[3].data == ("It",)


def test_json_has_all_of_it() -> None:
    shown = json.loads(json.dumps(as_json(trace(stream(*TEXTS)))))
    assert (shown["layers"], shown["latency"]["sooner_ms"], shown["latency"]["median_inter_token_ms"]) == (8, 60, 10)
    assert shown["lines"][2] == {
        "kind": "Initial Token Generation", "layer": 2, "data": "It", "token_id": 101, "at_us": at(20), "step_ms": 12,
    }  # fmt: skip


def test_a_prompt_without_texts_shows_its_token_ids() -> None:
    shown = trace_of(REQUEST_ID, record(prompt_texts="[]"), stream("It"), at(500))
    assert shown.stages[1].shape == "7 token IDs"
    assert "33 | 19 | 11 | 20 | 40 | 8 | 2" in page(shown)


def test_long_prompts_and_answers_lose_their_middle() -> None:
    prompt = "word " * 5000
    ids = json.dumps(list(range(5000)))
    shown = trace(stream(*[" yes"] * 3000), request=json.dumps({"prompt": prompt}), prompt_ids=ids)
    told = page(shown)
    assert "24,760" in told
    assert "5,000 token IDs" in told
    assert "… 4,976 more …" in told
    assert "… 2,963 more, in --json" in told
    assert "3002  Output Assembly" in told
    assert len(told.splitlines()) < 80


def test_a_chat_is_shown_message_by_message() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rain?"}]
    shown = trace(stream("No"), request=json.dumps({"prompt": None, "messages": messages}))
    assert shown.stages[0].shape == "2 messages"
    assert "system: Be brief.  user: Rain?" in page(shown)


def test_nothing_in_a_text_reaches_the_terminal() -> None:
    texts = ("\x1b[31mred", " [bold]b[/bold]", "\r\n", "\x9b2J", "\u202eevil", "\udc80", " 日本 :smile:")
    shown = page(trace(stream(*texts), request=json.dumps({"prompt": "".join(texts)})))
    assert not set(shown) & set("\x1b\r\x9b\u202e\udc80")
    for told in (r"\x1b[31mred", "[bold]b[/bold]", r"\r\n", r"\x9b2J", r"\u202e", r"\udc80", "日本 :smile:"):
        assert told in shown
    assert all(cell_len(line) <= 80 for line in shown.splitlines())
    assert visible("a\tb ü") == "a\\tb ü"


def test_a_baton_pass_is_a_line_but_no_layer(tokenrelay_redis: FakeRedis) -> None:
    shown = traced_on(tokenrelay_redis, answers("It is sunny.").migrating(after=2))
    assert shown.layers == 6
    assert [line.layer for line in shown.lines] == [None, 1, 2, 3, None, 4, 5, 6]
    assert shown.workers == ("scripted-1", "scripted-2")
    assert "   Baton Pass                  to scripted-2, token 3 " in page(shown)
    assert "model weather, 1 takeover" in page(shown)


def test_a_baton_pass_in_the_middle_of_a_long_answer_is_shown() -> None:
    entries = stream(*["a"] * 200)
    entries.insert(102, Migrated(EntryId(100, 1), at(1015), "w2", 2, 101))
    told = page(trace(entries))
    assert told.index("… 82 more, in --json") < told.index("to w2, token 101") < told.index("… 81 more, in --json")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (fails("internal_error", "it [b]roke", after="It is"), "failed: internal_error: it [b]roke"),
        (fails("internal_error", "at once"), "No word reached the reader."),
        (stalls(after="It"), "still running after"),
        (stalls(), "No word reached the reader in the "),
        (answers(), "No word reached the reader."),
    ],
)
def test_other_ends_and_none(tokenrelay_redis: FakeRedis, script: Script, told: str) -> None:
    assert told in page(traced_on(tokenrelay_redis, script))


def test_queued_and_cancelled_in_the_queue(tokenrelay_redis: FakeRedis) -> None:
    generation = Producer(connection=tokenrelay_redis).submit("Hello you")
    queued = Driver(tokenrelay_redis).run(traced(generation.request_id))
    assert (queued.layers, queued.stages[1].shape, queued.latency.queue_wait_ms) == (0, "not yet", None)
    assert "Prediction trace: 0 layers" in page(queued)
    generation.cancel()
    told = page(Driver(tokenrelay_redis).run(traced(generation.request_id)))
    assert "cancelled: by producer" in told
    assert "Cancelled" in told


def test_what_cant_be_traced(tokenrelay_redis: FakeRedis) -> None:
    driver = Driver(tokenrelay_redis)
    with pytest.raises(RequestError, match="request_id"):
        driver.run(traced("short"))
    with pytest.raises(RequestNotFound):
        driver.run(traced(REQUEST_ID))
    request_id = traced_on(tokenrelay_redis, answers("It")).request_id
    tokenrelay_redis.delete(f"tokenrelay:{{{request_id}}}:stream")
    with pytest.raises(StreamExpired):
        driver.run(traced(request_id))
    with pytest.raises(StreamGap):
        trace([entry for entry in stream(*TEXTS) if entry.entry_id.token != 3])


@given(whole_streams())
def test_every_stream_has_a_trace(entries: list[Entry]) -> None:
    for length in range(1, len(entries) + 1):
        shown = trace(entries[:length], state=str(entries[-1].kind) if length == len(entries) else "in_progress")
        tokens = sum(isinstance(entry, Token) for entry in entries[:length])
        started = any(isinstance(entry, Started) for entry in entries[:length])
        answered = entries[length - 1].kind in ("completed", "incomplete")
        assert shown.layers == started + tokens + answered
        assert len(shown.lines) == length
    assert all(cell_len(line) <= 80 for line in page(shown).splitlines())
