"""The page of `tokenrelay serve --demo`: the bundled model, and the kill button."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import expect

from tests.waiting import wait_until
from tokenrelay.worker.models import weather_model_path
from tokenrelay.worker.training.report.trace import TRACE_FILE, read_trace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

    from tests.browser.conftest import MakeTab
    from tests.browser.tab import Tab

LOADING_MS = 120_000
"""Timeout for another engine to load the model, also on a busy machine."""


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    """The address of a demo."""
    command = [sys.executable, "-m", "tokenrelay.cli", "serve", "--demo", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    told: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=_read, args=(process.stdout, told))
    reader.start()
    try:
        address = wait_until(lambda: process.poll() is not None or _address(told), 120)
        assert isinstance(address, str), told
        yield address
    finally:
        process.terminate()
        process.wait(60)
        reader.join()
        process.stdout.close()


def _read(output: IO[str], told: list[str]) -> None:
    told.extend(output)


def _address(told: list[str]) -> str | None:
    return next((line.strip() for line in list(told) if line.startswith("http://")), None)


@pytest.fixture
def tab(make_tab: MakeTab, demo: str) -> Tab:
    tab = make_tab(demo)
    tab.open()
    return tab


def test_the_weather_in_four_stages_and_eight_layers(tab: Tab) -> None:
    tab.run()
    expect(tab.answer).to_have_text("It is sunny and warm.")
    expect(tab.state).to_have_text("Completed")
    expect(tab.prompt_tokens).to_have_text(["What", "is", "the", "weather", "today", "?", "<end>"])
    expect(tab.tokens).to_have_text(["It", " is", " sunny", " and", " warm", "."])
    expect(tab.page.locator("#prediction-summary")).to_contain_text("8 layers.")
    layers = [row.locator("th").inner_text() for row in tab.lines.all()]
    assert layers == [
        "Queued",
        "Tokenization",
        "Initial Token Generation",
        *["Streaming Token Generation"] * 5,
        "Output Assembly",
    ]


def test_the_questions_are_answered_with_the_runs_own_numbers(tab: Tab) -> None:
    tab.run()
    expect(tab.state).to_have_text("Completed")
    questions = tab.page.locator("details")
    expect(questions).to_have_count(3)
    expect(questions.first.locator("p")).to_be_hidden()
    questions.first.locator("summary").click()
    expect(questions.first.locator("summary")).to_contain_text("Why does the model stream its answer")
    sooner = tab.page.locator(".insight strong").inner_text().removesuffix(" before")
    expect(questions.first.locator("p")).to_contain_text(f"{sooner} earlier")


def test_the_training_of_the_model(tab: Tab) -> None:
    table = tab.page.get_by_role("table", name="Training trace")
    expect(table.get_by_role("row")).to_have_count(7)
    trace = read_trace(weather_model_path() / TRACE_FILE)
    observation = trace.epochs[0].observation
    assert observation.startswith("learning fast: the loss fell by ")
    expect(table.get_by_role("row").nth(2)).to_contain_text(observation.capitalize())
    expect(tab.page.locator("#training")).to_contain_text(f"{trace.parameters:,} parameters")


@contextmanager
def all_slots_taken(demo: str) -> Iterator[None]:
    """Fill all slots but one with other requests: alone, an answer ends before a busy browser has clicked."""
    body = {"prompt": "x", "max_new_tokens": 2000, "ignore_eos": True}
    with httpx.Client(base_url=demo, timeout=60) as http:
        others = [http.post("/requests", json=body).json()["request_id"] for _ in range(15)]
        yield
        for request_id in others:
            http.post(f"/requests/{request_id}/cancel")


def test_the_stream_goes_on_when_the_worker_is_killed(tab: Tab, demo: str) -> None:
    tab.page.get_by_label("Ignore end-of-sequence: generate up to max tokens").check()
    with all_slots_taken(demo):
        tab.run(max_tokens="2000", seed="3", temperature="0.7")
        expect(tab.tokens.nth(20)).to_be_visible()
        tab.button("Kill the worker").dispatch_event("click")
    expect(tab.page.locator(".migrated")).to_be_visible(timeout=LOADING_MS)
    expect(tab.state).to_have_text("Incomplete", timeout=LOADING_MS)
    expect(tab.tokens).to_have_count(2000)
    expect(tab.stage("assembly")).to_contain_text("recomputed after a takeover")


def test_one_button_runs_and_kills(tab: Tab) -> None:
    expect(tab.page.get_by_label("Model", exact=True)).to_have_text("weather", timeout=LOADING_MS)
    tab.button("Run, and kill the worker mid-answer").click()
    expect(tab.page.locator(".migrated")).to_be_visible(timeout=LOADING_MS)
    expect(tab.state).to_have_text("Incomplete", timeout=LOADING_MS)
    expect(tab.tokens).to_have_count(256)
    expect(tab.notice).to_be_empty()
