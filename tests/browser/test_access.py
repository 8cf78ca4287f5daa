"""Accessibility: narrow screens, screen readers; and event parsing from any chunks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.gateway.live import WakingWriter

if TYPE_CHECKING:
    from redis import Redis

    from tests.browser.conftest import MakeTab
    from tests.browser.tab import Tab
    from tests.gateway.live import LiveGateway


def broken_run(tab: Tab, writer: WakingWriter, redis: Redis, *texts: str) -> None:
    """A run with a takeover in the middle."""
    tab.run()
    request_id = tab.wait_until(writer.take)
    writer.claim(request_id)
    writer.append(request_id, *texts)
    writer.release(request_id)
    successor = WakingWriter(redis, name="successor")
    successor.answer(request_id, texts)
    expect(tab.state).to_have_text("Completed")


def test_nothing_is_wider_than_a_phone(
    make_tab: MakeTab, gateway: LiveGateway, writer: WakingWriter, redis: Redis
) -> None:
    trace = {"model": "m" * 60, "epochs": [_epoch(1, "w" * 80), _epoch(2, "fell")], **_ABOUT}
    redis.hset(f"rq:worker:{writer.name}", "training", json.dumps(trace))
    tab = make_tab(gateway.url, viewport={"width": 360, "height": 740})
    tab.open()
    expect(tab.page.locator("#training")).to_be_visible()
    assert not tab.overflows
    broken_run(tab, writer, redis, "It", " " + "is" * 90, " sunny", *(" w" for _ in range(90)))
    for question in tab.page.locator("summary").all():
        question.click()
    tab.tokens.nth(1).focus()
    assert not tab.overflows


_ABOUT: dict[str, Any] = {
    "seed": 7,
    "data": "some data",
    "parameters": 1,
    "vocabulary": 1,
    "train_conversations": 1,
    "held_out_conversations": 1,
    "held_out_answer_tokens": 1,
    "loss_before": 6.0,
    "accuracy_before": 0.01,
    "question": "?",
    "seconds": 1.0,
}


def _epoch(epoch: int, observation: str) -> dict[str, Any]:
    measured = {"train_loss": 1, "loss": 1 / epoch, "accuracy": 0.5}
    return {"epoch": epoch, **measured, "observation": observation, "answer": "a"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1180])
def test_axe_finds_nothing(
    make_tab: MakeTab, gateway: LiveGateway, writer: WakingWriter, redis: Redis, scheme: str, width: int
) -> None:
    trace = {"model": "a model", "epochs": [_epoch(1, "learning")], **_ABOUT}
    redis.hset(f"rq:worker:{writer.name}", "training", json.dumps(trace))
    options = {"color_scheme": scheme, "reduced_motion": "reduce", "viewport": {"width": width, "height": 900}}
    tab = make_tab(gateway.url, **options)
    tab.open()
    expect(tab.page.locator("#training")).to_be_visible()
    _expect_accessible(tab)
    broken_run(tab, writer, redis, "It", " is", " sunny")
    tab.page.locator("summary").first.click()
    _expect_accessible(tab)
    tab.refusals = [400]
    tab.run(max_tokens="0")
    expect(tab.page.locator(".field-error:visible")).to_be_visible()
    _expect_accessible(tab)


def _expect_accessible(tab: Tab) -> None:
    result = Axe().run(tab.page)
    assert result.violations_count == 0, result.generate_report()


def test_a_screen_reader_is_told_of_turns_and_not_of_tokens(tab: Tab, writer: WakingWriter) -> None:
    status = tab.page.locator("#announcer")
    tab.run()
    request_id = tab.wait_until(writer.take)
    expect(status).to_have_text("Queued.")
    writer.claim(request_id)
    expect(status).to_have_text("A worker has started.")
    writer.append(request_id, "It", " is")
    expect(tab.tokens).to_have_count(2)
    expect(status).to_have_text("A worker has started.")
    assert tab.tokens.first.get_attribute("aria-label") is not None
    writer.finish(request_id)
    expect(status).to_have_text("Completed. It is")


def test_events_are_read_from_pieces_of_any_size(tab: Tab) -> None:
    stream = (
        ': hello\r\nid: 1-0\r\nevent: token\r\ndata: {"text": "é\u2028"}\r\n\r\n'
        "id: 2-0\ndata: a\ndata:  b\n\n"
        "id: 3-0\rdata: c\r\rdata: never"
    )
    read = """async ([stream, size]) => {
        const { EventParser } = await import("./static/sse.js");
        const parser = new EventParser();
        const read = [];
        for (let at = 0; at < stream.length; at += size) read.push(...parser.feed(stream.slice(at, at + size)));
        return read;
    }"""
    wanted = [
        {"id": "1-0", "event": "token", "data": '{"text": "é\u2028"}'},
        {"id": "2-0", "event": "message", "data": "a\n b"},
        {"id": "3-0", "event": "message", "data": "c"},
    ]
    for size in range(1, len(stream) + 1):
        assert tab.page.evaluate(read, [stream, size]) == wanted, size
