"""`/docs`: every operation of openapi.json, its fields, and an address for each; nothing from another site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

if TYPE_CHECKING:
    from tests.browser.conftest import MakeTab
    from tests.gateway.live import LiveGateway


def test_every_operation_is_shown_with_its_fields(make_tab: MakeTab, gateway: LiveGateway) -> None:
    """The tab fails if anything is asked of another site."""
    with gateway.client() as http:
        api: dict[str, Any] = http.get("/openapi.json").json()
        assert http.head("/docs").status_code == 200
    operations = [f"{method.upper()} {path}" for path, methods in api["paths"].items() for method in methods]
    tab = make_tab(gateway.url)
    tab.open("docs#create_v1_responses_post")
    summaries = tab.page.locator("summary")
    expect(summaries).to_have_count(len(operations))
    assert sorted(summaries.all_inner_texts()) == sorted(operations)
    responses = tab.page.locator("#create_v1_responses_post")
    expect(responses).to_have_attribute("open", "")
    body = responses.get_by_role("table", name="Body").locator("tr")
    assert body.count() == len(api["components"]["schemas"]["ResponseBody"]["properties"])
    expect(body.first).to_contain_text("required")
    expect(body.filter(has_text="top_logprobs")).to_contain_text("integer")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1180), ("dark", 360)])
def test_axe_finds_nothing(make_tab: MakeTab, gateway: LiveGateway, scheme: str, width: int) -> None:
    tab = make_tab(gateway.url, color_scheme=scheme, viewport={"width": width, "height": 900})
    tab.open("docs#submit_requests_post")
    expect(tab.page.locator("details[open]")).to_have_count(1)
    result = Axe().run(tab.page)
    assert result.violations_count == 0, result.generate_report()
    assert not tab.overflows


def test_a_gateway_that_is_gone_is_named(make_tab: MakeTab, gateway: LiveGateway) -> None:
    tab = make_tab(gateway.url)
    tab.refusals = [503]
    tab.page.route("**/openapi.json", lambda route: route.fulfill(status=503, body="busy"))
    tab.open("docs")
    expect(tab.page.get_by_role("alert")).to_contain_text("The gateway returned 503")
