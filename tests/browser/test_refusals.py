"""Errors, and how the page shows them."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect
from pydantic import SecretStr

from tests.writers import End
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from playwright.sync_api import Route
    from redis import Redis

    from tests.browser.conftest import MakeGateway, MakeTab
    from tests.browser.tab import Tab
    from tests.gateway.live import LiveGateway, WakingWriter


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("prompt", "   ", "blank"),
        ("max_tokens", "0", "greater than or equal to 1"),
        ("temperature", "-1", "greater than or equal to 0"),
        ("seed", "99999999999999999999", "A whole number up to"),
    ],
)
def test_a_refusal_stands_at_its_field(tab: Tab, field: str, value: str, told: str) -> None:
    tab.refusals = [400]
    tab.run(**{field: value})
    box = tab.page.get_by_label(field.replace("_", " ").capitalize(), exact=True)
    expect(box).to_be_focused()
    expect(box).to_have_attribute("aria-invalid", "true")
    expect(tab.page.locator(".field-error:visible")).to_contain_text(told)
    expect(box).to_have_accessible_description(tab.page.locator(".field-error:visible").inner_text())


def test_too_many_says_when_to_come_back(tab: Tab, writer: WakingWriter) -> None:
    tab.refusals = [429]
    error = {"message": "the queue holds 1000 requests, which is its limit", "code": "queue_full", "param": None}
    refused: list[str] = []

    def refuse_once(route: Route) -> None:
        if refused or route.request.method != "POST":
            route.continue_()
            return
        refused.append(route.request.url)
        route.fulfill(status=429, headers={"Retry-After": "1"}, json={"error": error})

    tab.page.route("**/requests", refuse_once)
    tab.run()
    expect(tab.notice).to_contain_text("Too many requests. The queue holds 1000 requests")
    again = tab.page.get_by_role("button", name="Try again")
    expect(again).to_be_disabled()
    again.click()  # waits until it can be pressed
    request_id = tab.wait_until(writer.take)
    writer.answer(request_id)
    expect(tab.state).to_have_text("Completed")
    expect(tab.notice).to_be_empty()


def test_a_gateway_that_cannot_serve_says_so(tab: Tab) -> None:
    tab.refusals = [503]
    error = {"message": "Redis can't be reached", "code": "redis_unusable", "param": None}
    tab.page.route("**/requests", lambda route: route.fulfill(status=503, json={"error": error}))
    tab.run()
    expect(tab.notice).to_contain_text("Unavailable. Redis can't be reached.")
    expect(tab.button("Try again")).to_be_enabled()


def test_a_request_that_is_gone_says_so(tab: Tab, writer: WakingWriter, redis: Redis) -> None:
    tab.run()
    request_id = tab.wait_until(writer.take)
    writer.answer(request_id)
    expect(tab.state).to_have_text("Completed")
    redis.delete(*keys.of_request(request_id))
    tab.refusals = [404]
    tab.page.reload()
    expect(tab.notice).to_contain_text("deleted after their retention time")
    expect(tab.state).to_have_text("Gone")
    expect(tab.recent).to_contain_text(["Gone"])
    expect(tab.button("Cancel")).to_be_hidden()


def test_a_failure_says_why(tab: Tab, writer: WakingWriter) -> None:
    tab.run()
    request_id = tab.wait_until(writer.take)
    writer.answer(request_id, ("It",), End("failed", "error", code="poison", message="three workers died of it"))
    expect(tab.state).to_have_text("Failed, poison: three workers died of it")
    expect(tab.answer).to_have_text("It")


def test_a_model_without_a_live_worker(make_tab: MakeTab, gateway: LiveGateway, redis: Redis) -> None:
    from tests.gateway.live import WakingWriter

    tab = make_tab(gateway.url)
    tab.open()
    expect(tab.notice).to_contain_text("No worker is alive")
    expect(tab.page.get_by_label("Model", exact=True)).to_have_text("no live worker")
    tab.run()
    expect(tab.stage("tokenization")).to_contain_text("Waiting for a worker")
    writer = WakingWriter(redis)
    writer.appear()
    writer.answer(tab.wait_until(writer.take))
    expect(tab.state).to_have_text("Completed")
    expect(tab.notice).to_be_empty()
    expect(tab.page.get_by_label("Model", exact=True)).to_have_text("weather")


def test_a_gateway_with_keys_asks_for_one(make_tab: MakeTab, make_gateway: MakeGateway, writer: WakingWriter) -> None:
    allowed = [{"name": "ada", "sha256": hashlib.sha256(b"tr-ada").hexdigest()}]
    gateway = make_gateway(api_keys=SecretStr(json.dumps(allowed)))
    tab = make_tab(gateway.url)
    tab.refusals = [401]
    tab.open()
    expect(tab.notice).to_contain_text("requires an API key")
    field = tab.page.get_by_label("API key")
    field.fill("tr-eve")
    tab.button("Use").click()
    expect(tab.notice).to_contain_text("Unauthorized. This API key is unknown.")
    field.fill("tr-ada")
    tab.button("Use").click()
    expect(tab.page.get_by_label("Model", exact=True)).to_have_text("weather")
    tab.run()
    writer.answer(tab.wait_until(writer.take))
    expect(tab.state).to_have_text("Completed")
    tab.page.reload()
    expect(tab.answer).to_have_text("It is sunny and warm.")
    assert tab.page.evaluate("Object.values(localStorage).some((value) => value.includes('tr-ada'))") is False
