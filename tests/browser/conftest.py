"""A real browser on a real gateway. Without a chromium these tests are skipped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.browser.tab import Tab
from tests.gateway.live import LiveGateway, WakingWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser
    from redis import Redis

    from tests.redis_servers import RedisServer

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_ARGUMENTS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_PATIENCE_MS: Final = 30_000
"""Timeout for expected changes, generous for busy machines."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: needs a chromium")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(300))


class MakeGateway(Protocol):
    """Start a gateway on the shared Redis; settings by name."""

    def __call__(self, **settings: Any) -> LiveGateway: ...


class MakeTab(Protocol):
    """Open a tab with separate storage; arguments of `Browser.new_context` by name."""

    def __call__(self, origin: str, **options: Any) -> Tab: ...


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A headless chromium, for this package only: Playwright keeps an event loop running, others can't start one."""
    binary = next(filter(None, map(shutil.which, _NAMES)), None)
    if binary is None:
        message = f"the browser tests need a chromium on PATH: {', '.join(_NAMES)}"
        pytest.skip(message)
    expect.set_options(timeout=_PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=list(_ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def make_gateway(redis_server: RedisServer) -> Iterator[MakeGateway]:
    made: list[LiveGateway] = []

    def make(**settings: Any) -> LiveGateway:
        made.append(LiveGateway(redis_server.url, **settings))
        return made[-1]

    yield make
    for gateway in made:
        gateway.stop()


@pytest.fixture
def make_tab(browser: Browser, make_gateway: MakeGateway) -> Iterator[MakeTab]:
    """Depends on `make_gateway`, so that tabs close before their gateways."""
    tabs: list[Tab] = []

    def make(origin: str, **options: Any) -> Tab:
        context = browser.new_context(**{"viewport": {"width": 1180, "height": 900}, **options})
        tabs.append(Tab(context.new_page(), origin))
        return tabs[-1]

    yield make
    for tab in tabs:
        tab.page.context.close()
    for tab in tabs:
        tab.check()


@pytest.fixture
def gateway(make_gateway: MakeGateway) -> LiveGateway:
    return make_gateway()


@pytest.fixture
def writer(redis: Redis) -> WakingWriter:
    """A live worker of the model weather, scripted by the test."""
    writer = WakingWriter(redis)
    writer.appear()
    return writer


@pytest.fixture
def tab(make_tab: MakeTab, gateway: LiveGateway, writer: WakingWriter) -> Tab:
    """A tab on the page of a gateway with one live worker."""
    tab = make_tab(gateway.url)
    tab.open()
    return tab
