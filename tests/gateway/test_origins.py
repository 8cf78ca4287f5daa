"""Cross-origin requests and DNS rebinding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from tests.gateway.test_tenants import ALICE, KEYS

if TYPE_CHECKING:
    import httpx

    from tests.gateway.conftest import MakeGateway


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_origin_may_not_ask(http: httpx.Client, site: str) -> None:
    headers = {"Sec-Fetch-Site": site, "Origin": "https://evil.example"}
    assert http.post("/requests", json={"prompt": "x"}, headers=headers).status_code == 403
    answer = http.options("/requests", headers={**headers, "Access-Control-Request-Method": "POST"})
    assert "access-control-allow-origin" not in answer.headers
    own = {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:8000"}
    assert http.post("/requests", json={"prompt": "x"}, headers=own).status_code == 202


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://evil.example", "10.0.0.5:8000", 403),
        ("http://10.0.0.6:8000", "10.0.0.5:8000", 403),
        ("http://10.0.0.5:3000", "10.0.0.5:8000", 403),
        ("http://10.0.0.5", "10.0.0.5:8000", 403),
        ("http://evil.10.0.0.5:8000", "10.0.0.5:8000", 403),
        ("http://10.0.0.5:8000@evil.example", "10.0.0.5:8000", 403),
        ("null", "10.0.0.5:8000", 403),
        ("file://", "10.0.0.5:8000", 403),
        ("http://10.0.0.5:99999999", "10.0.0.5:8000", 403),
        ("http://10.0.0.5:8000", "10.0.0.5:8000", 202),
        ("http://10.0.0.5", "10.0.0.5", 202),
        ("http://10.0.0.5", "10.0.0.5:80", 202),
        ("https://models.internal", "models.internal", 202),  # a proxy in front speaks TLS
        ("https://models.internal", "models.internal:443", 202),
        ("http://[::1]:8000", "[::1]:8000", 202),
        ("http://LOCALHOST:8000", "localhost:8000", 202),
        ("", "10.0.0.5:8000", 202),
    ],
)
def test_over_plain_http_origin_is_compared_with_host(http: httpx.Client, origin: str, host: str, status: int) -> None:
    """Browsers don't send Sec-Fetch-Site there."""
    headers = {"Host": host, **({"Origin": origin} if origin else {})}
    assert http.post("/requests", json={"prompt": "x"}, headers=headers).status_code == status
    assert http.post("/demo/kill-worker", headers=headers).status_code == (404 if status == 202 else 403)
    assert http.get("/config.json", headers=headers).status_code == 200


def test_cors_where_it_is_set(make_gateway: MakeGateway) -> None:
    with make_gateway(cors_origins="https://app.example, https://other.example").client() as client:
        for site in ({"Sec-Fetch-Site": "cross-site"}, {}):
            asked = {"Origin": "https://app.example", **site}
            answer = client.post("/requests", json={"prompt": "x"}, headers=asked)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (202, "https://app.example")
            evil = client.post("/requests", json={"prompt": "x"}, headers={**asked, "Origin": "https://evil.example"})
            assert evil.status_code == 403
            assert "TOKENRELAY_CORS_ORIGINS" in evil.json()["error"]["message"]


OWN = [
    "127.0.0.1:8000",
    "localhost:8000",
    "app.localhost",
    "[::1]:8000",
    "[fe80::1%25eth0]:8000",
    "192.168.1.7",
    "10.0.0.5:80",
    "gateway:8000",
    "gateway",
    "GATEWAY.",
    "mac.local:8000",
    "gateway.default.svc",
    "gateway.default.svc.cluster.local:8000",
    "metadata.google.internal",
]
OTHERS = [
    "evil.example",
    "evil.example:8000",
    "evil.example.",
    "EVIL.example",
    "127.0.0.1.nip.io",
    "127.0.0.1.evil.example:8000",
    "localhost.evil.example",
    "a:b@evil.example",
    "evil.example:80:80",
    "x.local.evil.example",
]


@pytest.mark.parametrize("host", OWN)
def test_addresses_and_local_names_are_answered(http: httpx.Client, host: str) -> None:
    assert http.get("/config.json", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", OTHERS)
def test_a_name_that_anybody_may_point_here_is_not(http: httpx.Client, host: str) -> None:
    for answer in (
        http.get("/config.json", headers={"Host": host}),
        http.post("/requests", json={"prompt": "x"}, headers={"Host": host, "Origin": f"http://{host}"}),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host")
        assert "TOKENRELAY_ALLOWED_HOSTS" in answer.json()["error"]["message"]
    assert http.get("/health", headers={"Host": host}).status_code == 200  # load balancers' probes


def test_hosts_that_are_listed(make_gateway: MakeGateway) -> None:
    with make_gateway(allowed_hosts="models.example.com, *.apps.example").client() as client:
        for host, status in {
            "models.example.com": 200,
            "Models.Example.com:8443": 200,
            "a.apps.example": 200,
            "a.b.apps.example:1": 200,
            "apps.example": 403,
            "evilapps.example": 403,
            "evil.example": 403,
        }.items():
            assert client.get("/config.json", headers={"Host": host}).status_code == status, host
    with make_gateway(allowed_hosts="*").client() as client:
        assert client.get("/config.json", headers={"Host": "evil.example"}).status_code == 200


def test_keys_make_every_name_safe(make_gateway: MakeGateway) -> None:
    with make_gateway(api_keys=SecretStr(KEYS)).client(Authorization=f"Bearer {ALICE}") as client:
        assert client.get("/v1/models", headers={"Host": "models.example.com"}).status_code == 200
