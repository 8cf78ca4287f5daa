"""A browser tab on the page: its elements, and errors that must never occur."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar
from urllib.parse import parse_qs, urlsplit

from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from playwright.sync_api import ConsoleMessage, Locator, Page, Request

Value = TypeVar("Value")
_QUIET = ("log", "info", "debug")
_REFUSED = "Failed to load resource: the server responded with a status of "


class Tab:
    """One tab. `refusals`: HTTP statuses that the test expects, since browsers log each in the console."""

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.refusals: Sequence[int] = ()
        self._complaints: list[str] = []
        self._foreign: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self._complaints.append(str(error)))
        page.on("request", self._see)

    def open(self, query: str = "") -> None:
        self.page.goto(f"{self.origin}/{query}")

    def run(self, prompt: str = "What is the weather today?", **options: str) -> None:
        """Fill in the form and send it."""
        self.page.get_by_label("Prompt", exact=True).fill(prompt)
        for label, value in options.items():
            self.page.get_by_label(label.replace("_", " ").capitalize(), exact=True).fill(value)
        self.button("Run").click()

    def wait_until(self, condition: Callable[[], Value | None]) -> Value:
        """As `waiting.wait_until`, but sleeping in Playwright, which handles routed requests only during its calls."""
        return wait_until(condition, sleep=lambda pause_s: self.page.wait_for_timeout(1000 * pause_s))

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def stage(self, name: str) -> Locator:
        return self.page.locator(f"#stage-{name}")

    @property
    def prompt_tokens(self) -> Locator:
        return self.stage("tokenization").locator(".chip")

    @property
    def tokens(self) -> Locator:
        return self.stage("generation").locator(".chip")

    @property
    def answer(self) -> Locator:
        return self.stage("assembly").locator(".answer")

    @property
    def state(self) -> Locator:
        return self.page.locator("#state")

    @property
    def notice(self) -> Locator:
        return self.page.locator("#notice")

    @property
    def recent(self) -> Locator:
        return self.page.get_by_role("navigation", name="Recent requests").get_by_role("link")

    @property
    def lines(self) -> Locator:
        """The rows of the prediction trace."""
        return self.page.locator("#prediction tbody tr")

    @property
    def request_id(self) -> str:
        """Of the address."""
        return parse_qs(urlsplit(self.page.url).query)["request"][0]

    @property
    def overflows(self) -> bool:
        """Whether the page is wider than its window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))

    def check(self) -> None:
        """No requests to other origins, and no console errors."""
        assert not self._foreign, self._foreign
        meant = [f"{_REFUSED}{status} " for status in self.refusals]
        complaints = [told for told in self._complaints if not any(told.startswith(refusal) for refusal in meant)]
        assert not complaints, complaints

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type not in _QUIET:
            self._complaints.append(message.text)

    def _see(self, request: Request) -> None:
        if not request.url.startswith((f"{self.origin}/", "data:")):
            self._foreign.append(request.url)
