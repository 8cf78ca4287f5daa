"""The page on a stream that the test writes token by token: its state at each step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.gateway.live import WakingWriter
from tokenrelay.producer.client import Consumer

if TYPE_CHECKING:
    from playwright.sync_api import Route
    from redis import Redis

    from tests.browser.conftest import MakeTab
    from tests.browser.tab import Tab
    from tests.gateway.live import LiveGateway

ANSWER = ("It", " is", " sunny", " and", " warm", ".")


def test_the_four_stages_fill_as_the_request_runs(tab: Tab, writer: WakingWriter, gateway: LiveGateway) -> None:
    tab.run()
    request_id = tab.wait_until(writer.take)
    expect(tab.stage("input")).to_contain_text("What is the weather today?")
    expect(tab.stage("tokenization")).to_contain_text("Waiting for a worker")
    assert tab.request_id == request_id

    writer.claim(request_id)
    expect(tab.state).to_have_text("In progress")
    expect(tab.prompt_tokens).to_have_text(["1", "2", "3"])
    for count in range(1, 4):
        writer.append(request_id, ANSWER[count - 1])
        expect(tab.tokens).to_have_text(list(ANSWER[:count]))
        expect(tab.answer).to_have_text("".join(ANSWER[:count]))
    writer.append(request_id, *ANSWER[3:])
    writer.finish(request_id)

    expect(tab.state).to_have_text("Completed")
    expect(tab.answer).to_have_text("It is sunny and warm.")
    for stage, shape in (("input", "1 × 1"), ("tokenization", "1 × 3"), ("generation", "1 × 6"), ("assembly", "1 × 1")):
        expect(tab.stage(stage).locator(".shape")).to_have_text(shape)
    with gateway.client() as http:
        expect_trace(tab, http.get(f"/requests/{request_id}/trace").json())


def expect_trace(tab: Tab, trace: dict[str, Any]) -> None:
    """The page's prediction trace is the one of `tokenrelay trace`, and so are its times."""
    rows = [
        [line["layer"] or "", line["kind"], line["data"].strip(), f"+{line['step_ms']:.1f}"] for line in trace["lines"]
    ]
    shown = [
        [int(number) if number else "", kind, data.strip(), step]
        for number, kind, data, step, _ in (row.locator("th, td").all_inner_texts() for row in tab.lines.all())
    ]
    assert [row[:3] for row in shown] == [row[:3] for row in rows]
    # Python rounds halves to even, JavaScript doesn't.
    assert all(abs(float(ours[3]) - float(theirs[3])) < 0.11 for ours, theirs in zip(shown, rows, strict=True))
    assert f"{trace['layers']} layers" in tab.page.locator("#prediction-summary").inner_text()
    sooner_ms = trace["latency"]["sooner_ms"]
    told = tab.page.locator(".insight strong").inner_text().removesuffix(" before")
    assert abs(milliseconds(told) - sooner_ms) <= max(0.11, sooner_ms / 100)


def milliseconds(told: str) -> float:
    number, unit = told.split()
    return float(number) * (1000 if unit == "s" else 1)


def test_a_reload_in_the_middle_goes_on_to_the_same_text(tab: Tab, writer: WakingWriter, redis: Redis) -> None:
    tab.run()
    request_id = tab.wait_until(writer.take)
    writer.claim(request_id)
    writer.append(request_id, *ANSWER[:3])
    expect(tab.tokens).to_have_count(3)
    tab.page.reload()
    expect(tab.tokens).to_have_text(list(ANSWER[:3]))
    expect(tab.stage("input")).to_contain_text("What is the weather today?")
    writer.append(request_id, *ANSWER[3:])
    expect(tab.tokens).to_have_text(list(ANSWER))
    writer.finish(request_id)
    expect(tab.state).to_have_text("Completed")
    assert tab.answer.inner_text() == Consumer(connection=redis).get(request_id).result(60).text


@pytest.mark.parametrize("again", ["what is missing", "all of it"])
def test_a_lost_connection_goes_on_behind_the_last_event(tab: Tab, writer: WakingWriter, again: str) -> None:
    asked_after: list[str] = []

    def cut_after_the_second_token(route: Route) -> None:
        headers = route.request.headers
        asked_after.append(headers.pop("last-event-id", ""))
        if len(asked_after) > 1 and again == "what is missing":
            route.continue_()
            return
        whole = route.fetch(headers=headers).text()
        cut = whole if len(asked_after) > 1 else whole[: whole.index("id: 3-0") + 10]
        route.fulfill(status=200, headers={"Content-Type": "text/event-stream"}, body=cut)

    tab.page.route("**/events", cut_after_the_second_token)
    request_id = submitted_and_answered(tab, writer)
    expect(tab.state).to_have_text("Completed")
    expect(tab.tokens).to_have_text(list(ANSWER))
    assert asked_after == ["", "2-0"]
    assert tab.request_id == request_id


def test_a_connection_that_fell_silent_is_made_anew(tab: Tab, writer: WakingWriter) -> None:
    tab.page.clock.install()
    tab.page.reload()
    tab.run()
    request_id = tab.wait_until(writer.take)
    writer.claim(request_id)
    writer.append(request_id, *ANSWER[:2])
    expect(tab.tokens).to_have_count(2)
    with tab.page.expect_request("**/events") as again:
        tab.page.clock.fast_forward(60_000)
        tab.page.clock.run_for(1000)
    assert again.value.headers["last-event-id"] == "2-0"
    writer.append(request_id, *ANSWER[2:])
    writer.finish(request_id)
    expect(tab.tokens).to_have_text(list(ANSWER))


def submitted_and_answered(tab: Tab, writer: WakingWriter, prompt: str = "What is the weather today?") -> str:
    tab.run(prompt)
    request_id = tab.wait_until(writer.take)
    writer.answer(request_id, ANSWER)
    return request_id


def test_a_migration_stands_between_its_tokens(tab: Tab, writer: WakingWriter, redis: Redis) -> None:
    tab.run()
    request_id = tab.wait_until(writer.take)
    writer.claim(request_id)
    writer.append(request_id, *ANSWER[:3])
    expect(tab.tokens).to_have_count(3)
    writer.release(request_id)
    successor = WakingWriter(redis, name="successor")
    successor.claim(request_id)
    successor.append(request_id, *ANSWER[3:])
    successor.finish(request_id)
    expect(tab.answer).to_have_text("It is sunny and warm.")
    items = tab.page.locator("#tokens > li")
    expect(items.nth(3)).to_contain_text("migrated attempt 2 on successor resumes at token 4")
    expect(items).to_have_count(7)
    expect(tab.lines.nth(5)).to_contain_text("Baton Pass")
    expect(tab.page.get_by_text("The worker died.", exact=False)).to_be_visible()


def test_cancelling_ends_it_where_it_is(tab: Tab, writer: WakingWriter, gateway: LiveGateway) -> None:
    tab.run()
    request_id = tab.wait_until(writer.take)
    writer.claim(request_id)
    writer.append(request_id, *ANSWER[:2])
    expect(tab.tokens).to_have_count(2)
    tab.button("Cancel").click()
    expect(tab.state).to_contain_text("Cancelled")
    expect(tab.button("Cancel")).to_be_hidden()
    expect(tab.button("Replay slowly")).to_be_focused()
    expect(tab.answer).to_have_text("It is")
    expect(tab.recent).to_contain_text(["Cancelled"])
    with gateway.client() as http:
        assert http.get(f"/requests/{request_id}").json()["state"] == "cancelled"


def test_recent_requests_are_kept_by_the_browser(tab: Tab, writer: WakingWriter) -> None:
    first = submitted_and_answered(tab, writer, "Is it cold?")
    expect(tab.state).to_have_text("Completed")
    second = submitted_and_answered(tab, writer, "Is it windy?")
    expect(tab.recent).to_contain_text(["Is it windy?", "Is it cold?"])
    tab.open()
    expect(tab.recent).to_contain_text(["Is it windy?", "Is it cold?"])
    tab.recent.nth(1).click()
    expect(tab.stage("input")).to_contain_text("Is it cold?")
    expect(tab.answer).to_have_text("It is sunny and warm.")
    assert tab.request_id == first
    tab.recent.nth(0).click()
    expect(tab.stage("input")).to_contain_text("Is it windy?")
    assert tab.request_id == second
    tab.page.go_back()
    expect(tab.stage("input")).to_contain_text("Is it cold?")
    tab.button("Clear the list").click()
    expect(tab.recent).to_have_count(0)


def test_it_works_behind_a_prefix(make_tab: MakeTab, gateway: LiveGateway, writer: WakingWriter) -> None:
    tab = make_tab(gateway.url)
    prefix = f"{gateway.url}/behind/a/prefix"
    at_the_gateway: list[str] = []

    def strip(route: Route) -> None:
        url = route.request.url
        if not url.startswith(f"{prefix}/"):
            at_the_gateway.append(url)
        route.continue_(url=url.replace(prefix, gateway.url))

    tab.page.route("**/*", strip)
    tab.open("behind/a/prefix/")
    submitted_and_answered(tab, writer)
    expect(tab.state).to_have_text("Completed")
    tab.page.reload()
    expect(tab.answer).to_have_text("It is sunny and warm.")
    assert tab.page.url.startswith(f"{prefix}/?request=")
    assert not at_the_gateway


def test_what_ended_meanwhile_is_known_after_a_reload(tab: Tab, writer: WakingWriter) -> None:
    tab.run()
    request_id = tab.wait_until(writer.take)
    expect(tab.recent).to_have_count(1)  # Redis has the request before the page knows its ID
    tab.open()
    writer.answer(request_id, ANSWER)
    tab.page.reload()
    expect(tab.recent).to_contain_text(["Completed"])


def test_text_of_a_prompt_or_a_model_is_never_markup(tab: Tab, writer: WakingWriter) -> None:
    hostile = "<img src=x onerror=alert(1)><b>bold</b>"
    tab.run(hostile)
    request_id = tab.wait_until(writer.take)
    writer.answer(request_id, (hostile, "\n", "</ol><script>alert(1)</script>"))
    expect(tab.state).to_have_text("Completed")
    expect(tab.stage("input").locator(".text")).to_have_text(hostile)
    assert tab.answer.text_content() == f"{hostile}\n</ol><script>alert(1)</script>"
    assert tab.page.locator("main img, main b, main script").count() == 0


def test_a_long_answer_keeps_its_trace_short(tab: Tab, writer: WakingWriter) -> None:
    tab.run()
    request_id = tab.wait_until(writer.take)
    writer.answer(request_id, tuple(f" w{number}" for number in range(200)))
    expect(tab.tokens).to_have_count(200)
    expect(tab.lines).to_have_count(41)
    tab.page.get_by_role("button", name="Show 163 more").click()
    expect(tab.lines).to_have_count(203)


def test_tokens_are_walked_through_with_the_keyboard(tab: Tab, writer: WakingWriter) -> None:
    submitted_and_answered(tab, writer)
    expect(tab.tokens).to_have_count(6)
    tab.tokens.first.focus()
    for key, index, text in (("ArrowRight", 2, " is"), ("End", 6, "."), ("ArrowLeft", 5, " warm"), ("Home", 1, "It")):
        tab.page.keyboard.press(key)
        expect(tab.tokens.nth(index - 1)).to_be_focused()
        expect(tab.page.locator("#token-detail")).to_contain_text(f"Token {index}: “{text}”, vocabulary ID")
    tab.page.keyboard.press("Tab")
    assert tab.page.locator("#tokens button:focus").count() == 0


def test_a_replay_shows_the_same_again(tab: Tab, writer: WakingWriter) -> None:
    submitted_and_answered(tab, writer)
    expect(tab.state).to_have_text("Completed")
    tab.page.clock.install()
    tab.button("Replay slowly").click()
    expect(tab.state).to_have_text("Replay")
    tab.page.clock.run_for(20_000)
    expect(tab.state).to_have_text("Completed")
    expect(tab.answer).to_have_text("It is sunny and warm.")


def test_the_theme_is_chosen_and_kept(make_tab: MakeTab, gateway: LiveGateway, writer: WakingWriter) -> None:
    tab = make_tab(gateway.url, color_scheme="light")
    tab.open()
    paper = "getComputedStyle(document.body).backgroundColor"
    light = tab.page.evaluate(paper)
    theme = tab.page.get_by_role("button", name="Theme")
    expect(theme).to_have_text("Theme: System")
    theme.click()
    theme.click()
    expect(theme).to_have_text("Theme: Dark")
    dark = tab.page.evaluate(paper)
    assert dark != light
    tab.page.reload()
    assert tab.page.evaluate(paper) == dark
