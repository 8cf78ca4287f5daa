"""Log-probabilities and schemas on the page: a token's alternatives by pointer, tap and keys; what's wrong with a
schema, whoever finds it."""

from __future__ import annotations

import json
from math import log
from typing import TYPE_CHECKING, Any, Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.writers import End, Scored

if TYPE_CHECKING:
    from playwright.sync_api import Locator
    from redis import Redis

    from tests.browser.conftest import MakeTab
    from tests.browser.tab import Tab
    from tests.gateway.live import LiveGateway, WakingWriter

BLANK: Final = (7, log(0.0001), b" rainy")
ANSWER: Final = (
    Scored("It", ((1, log(0.9), b"It"), (1, log(0.9), b"It"), (2, log(0.05), b"We"))),
    Scored(" is", ((3, log(0.25), b" is"), (4, log(0.6), b" was"), (5, log(0.1), b"\xe2\x98"))),
    Scored("", ((6, log(0.5), b"\xe2"), (6, log(0.5), b"\xe2"), BLANK)),
)
EXAMPLE: Final = "What is the weather in Oslo? Answer as JSON."


@pytest.fixture(autouse=True)
def capable(writer: WakingWriter, redis: Redis) -> None:
    """The scripted worker says that it knows grammars and log-probabilities."""
    offered: dict[Any, Any] = {"wire": 2, "capabilities": json.dumps(["grammar", "logprobs"])}
    redis.hset(f"rq:worker:{writer.name}", mapping=offered)


def scored_run(tab: Tab, writer: WakingWriter) -> dict[str, Any]:
    """Run with alternatives; what was asked for."""
    tab.run(alternatives="2")
    request_id = tab.wait_until(writer.take)
    asked: dict[str, Any] = dict(writer.request(request_id))
    writer.answer(request_id, ANSWER)
    expect(tab.state).to_have_text("Completed")
    return asked


def alternatives(tab: Tab) -> Locator:
    return tab.page.get_by_role("list", name="Likeliest tokens here").get_by_role("listitem")


def test_pointing_at_a_token_shows_what_the_model_could_have_drawn(tab: Tab, writer: WakingWriter) -> None:
    asked = scored_run(tab, writer)
    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 2)
    expect(alternatives(tab)).to_have_count(0)
    tab.tokens.nth(0).hover()
    expect(alternatives(tab)).to_have_text(["It90.0 % drawn", "We5.0 %"])
    tab.tokens.nth(1).hover()
    expect(alternatives(tab)).to_have_text([" was60.0 %", "bytes e2 9810.0 %", " is25.0 % drawn"])
    tab.page.locator("h1").hover()
    expect(alternatives(tab)).to_have_count(0)


def test_keys_show_them_and_a_screen_reader_reads_them(tab: Tab, writer: WakingWriter) -> None:
    scored_run(tab, writer)
    tab.tokens.nth(0).focus()
    tab.page.keyboard.press("ArrowRight")
    expect(alternatives(tab)).to_have_count(3)
    label = tab.tokens.nth(1).get_attribute("aria-label") or ""
    assert label.endswith("Probability 25.0 %; instead of it “ was” 60.0 %, bytes e2 98 10.0 %.")
    tab.page.keyboard.press("End")
    expect(alternatives(tab)).to_have_text(["bytes e250.0 % drawn", " rainy< 0.1 %"])


def test_a_tap_shows_them(make_tab: MakeTab, gateway: LiveGateway, writer: WakingWriter) -> None:
    tab = make_tab(gateway.url, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    tab.open()
    scored_run(tab, writer)
    tab.tokens.nth(1).tap()
    expect(alternatives(tab)).to_have_count(3)
    assert not tab.overflows


def test_a_run_without_log_probabilities_has_none(tab: Tab, writer: WakingWriter) -> None:
    tab.run()
    request_id = tab.wait_until(writer.take)
    assert not writer.request(request_id).get("logprobs")
    writer.answer(request_id)
    tab.tokens.nth(0).hover()
    expect(tab.page.locator("#token-detail")).to_contain_text("Token 1")
    expect(tab.page.locator("#alternatives")).to_be_hidden()


def test_the_answer_is_asked_for_by_a_schema(tab: Tab, writer: WakingWriter) -> None:
    tab.button("Example").click()
    box = tab.page.get_by_label("JSON schema of the answer")
    expect(box).to_be_focused()
    tab.button("Run").click()
    request_id = tab.wait_until(writer.take)
    asked = writer.request(request_id)
    assert asked["prompt"] == EXAMPLE
    form: Any = asked["response_format"]
    assert form["type"] == "json_schema"
    assert json.loads(form["value"])["required"] == ["place", "weather", "degrees", "rain"]
    writer.claim(request_id)
    writer.finish(request_id, End("failed", "error", code="invalid_grammar", message="response_format: too ambiguous"))
    expect(error(tab)).to_have_text("Too ambiguous")
    expect(box).to_have_attribute("aria-invalid", "true")
    tab.page.reload()
    expect(tab.state).to_contain_text("Failed, invalid_grammar")
    expect(error(tab)).to_be_hidden()


def error(tab: Tab) -> Locator:
    return tab.page.locator("#schema-error")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ('{"type": "object",}', "Not JSON: "),
        ("[1]", 'A JSON schema is an object, such as {"type": "object"}'),
        ('{"$ref": "http://a/b"}', "Refers to another document, 'http://a/b'"),
    ],
)
def test_what_is_wrong_with_a_schema_is_said_at_its_box(tab: Tab, given: str, reason: str) -> None:
    tab.refusals = [400]
    tab.page.get_by_label("JSON schema of the answer").fill(given)
    tab.button("Run").click()
    expect(error(tab)).to_contain_text(reason)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1180])
def test_axe_finds_nothing(
    make_tab: MakeTab, gateway: LiveGateway, writer: WakingWriter, scheme: str, width: int
) -> None:
    options = {"color_scheme": scheme, "reduced_motion": "reduce", "viewport": {"width": width, "height": 900}}
    tab = make_tab(gateway.url, **options)
    tab.open()
    scored_run(tab, writer)
    tab.tokens.nth(1).focus()
    expect(alternatives(tab)).to_have_count(3)
    result = Axe().run(tab.page)
    assert result.violations_count == 0, result.generate_report()
    tab.page.get_by_label("JSON schema of the answer").fill("{")
    tab.button("Run").click()
    expect(error(tab)).to_be_visible()
    result = Axe().run(tab.page)
    assert result.violations_count == 0, result.generate_report()
    assert not tab.overflows
