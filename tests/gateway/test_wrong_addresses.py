"""A wrong base URL, method or encoding gets an error that names the right one."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import httpx

    from tests.gateway.live import WakingWriter

ASKED = {"model": "weather", "messages": [{"role": "user", "content": "é"}]}
BODY = json.dumps(ASKED, ensure_ascii=False)
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/api/v1/responses", "/v1/responses"),
        ("/engines/weather/completions", "/v1/completions"),
    ],
)
def test_an_endpoint_at_a_wrong_place_is_told_its_own(http: httpx.Client, path: str, right: str) -> None:
    answer = http.post(path, json=ASKED)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "not_found")
    assert error["message"].startswith(f"nothing is at {path}; ")
    assert f" reach {right} with a base URL that ends in /v1" in error["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "/v1//chat/completions"])
def test_slashes_too_many_are_taken_for_one(http: httpx.Client, writer: WakingWriter, path: str) -> None:
    """Without a redirect: many clients don't follow one, or drop their API key."""
    answer = http.post(path, json={**ASKED, "max_tokens": 0})
    assert answer.json()["error"]["param"] == "max_tokens"


def test_a_list_may_end_in_a_slash(http: httpx.Client, writer: WakingWriter) -> None:
    assert http.get("/v1/models/").json()["data"][0]["id"] == "weather"


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models"])
def test_probes_may_ask_for_the_head_alone(http: httpx.Client, path: str) -> None:
    answer = http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


def test_another_path_is_named(http: httpx.Client) -> None:
    error = http.post("/v1/embeddings", json={"input": "x"}).json()["error"]
    assert error["message"] == "nothing is at /v1/embeddings"


def test_another_method_is_told_which(http: httpx.Client) -> None:
    answer = http.get("/v1/chat/completions")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert answer.json()["error"]["message"] == "GET isn't allowed at /v1/chat/completions; use POST"


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models"])
def test_another_method_is_told_get_where_the_head_is_answered_too(http: httpx.Client, path: str) -> None:
    answer = http.put(path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET")


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br"])
def test_a_compressed_body_is_named(http: httpx.Client, encoding: str) -> None:
    headers = {**JSON, "Content-Encoding": encoding}
    answer = http.post("/v1/chat/completions", content=gzip.compress(BODY.encode()), headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (415, "Content-Encoding")
    assert error["message"] == f"Content-Encoding: is '{encoding}'; send the body unencoded"


def test_a_body_in_another_charset_is_told_utf8(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", content=BODY.encode("latin-1"), headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    assert "UTF-8" in answer.json()["error"]["message"]
