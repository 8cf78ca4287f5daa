"""Items of earlier responses can be referenced by ID, as AI SDK's OpenAI provider does in later turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.waiting import wait_until
from tests.writers import End, serving
from tokenrelay.gateway.core.tenants import new_key
from tokenrelay.gateway.openai.stored_items import MAX_REFERENCES

if TYPE_CHECKING:
    import httpx

    from tests.gateway.conftest import MakeGateway
    from tests.gateway.live import WakingWriter
    from tests.redis_servers import RedisServer

FIRST = {"role": "user", "content": "What is the weather today?"}
NEXT = {"role": "user", "content": "And tomorrow?"}
NOBODYS = "msg_" + "x" * 22


def asked(http: httpx.Client, *items: dict[str, Any], **fields: Any) -> httpx.Response:
    return http.post("/v1/responses", json={"model": "weather", "input": [*items], **fields})


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", [{"type": "item_reference"}, {}, {"type": None}], ids=["typed", "bare", "null"])
def test_a_reference_is_the_answer_that_it_names(
    http: httpx.Client, redis_server: RedisServer, writer: WakingWriter, kind: dict[str, Any], stream: bool
) -> None:
    with serving(redis_server.url):
        item = asked(http, FIRST).json()["output"][0]["id"]
        second = asked(http, FIRST, {**kind, "id": item}, NEXT, stream=stream)
    assert second.status_code == 200
    said = writer.request(second.headers["X-Request-Id"])["messages"]
    assert said == [FIRST, {"role": "assistant", "content": "It is sunny and warm."}, NEXT]


@pytest.mark.parametrize("item_id", [NOBODYS, "rs_1", "msg_", "", "msg_\N{SNOWMAN}"])
def test_an_item_that_is_not_there_is_a_404_that_names_it(
    http: httpx.Client, writer: WakingWriter, item_id: str
) -> None:
    del writer  # it is what registers the worker
    answer = asked(http, FIRST, {"type": "item_reference", "id": item_id}, NEXT)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (404, "input.1")
    assert ascii(item_id) in error["message"]


def test_an_unfinished_one_is_refused(http: httpx.Client, writer: WakingWriter) -> None:
    response = asked(http, FIRST, background=True).json()["id"]
    request_id = writer.take()
    assert request_id is not None
    assert response == f"resp_{request_id}"
    answer = asked(http, {"type": "item_reference", "id": f"msg_{request_id}"}, NEXT)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input.0")
    assert "hasn't ended" in answer.json()["error"]["message"]


def test_another_key_s_item_is_not_there(
    make_gateway: MakeGateway, redis_server: RedisServer, writer: WakingWriter
) -> None:
    del writer
    keys = {name: new_key(name) for name in ("alice", "bob")}
    entries = ",".join(f'{{"name": "{name}", "sha256": "{entry["sha256"]}"}}' for name, (_, entry) in keys.items())
    gateway = make_gateway(api_keys=f"[{entries}]")
    alice, bob = (gateway.client(Authorization=f"Bearer {key}") for key, _ in keys.values())
    with alice, bob, serving(redis_server.url):
        first = asked(alice, FIRST).json()
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        assert asked(bob, FIRST, reference, NEXT).status_code == 404
        assert asked(alice, FIRST, reference, NEXT).status_code == 200
        assert asked(bob, NEXT, previous_response_id=first["id"]).status_code == 400
        assert asked(alice, NEXT, previous_response_id=first["id"]).status_code == 200


def test_what_one_body_makes_the_gateway_read_is_bounded(http: httpx.Client) -> None:
    answer = asked(http, *[{"id": NOBODYS}] * (MAX_REFERENCES + 1))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")


ANSWER = {"role": "assistant", "content": "It is sunny and warm."}


class TestPreviousResponse:
    """A response may continue the conversation of an earlier one by its ID."""

    def test_three_turns(self, http: httpx.Client, redis_server: RedisServer, writer: WakingWriter) -> None:
        """Each with its own instructions, which later responses don't inherit."""
        with serving(redis_server.url):
            first = asked(http, FIRST, instructions="Be brief.").json()
            second = asked(http, NEXT, previous_response_id=first["id"], instructions="Be kind.").json()
            third = http.post(
                "/v1/responses", json={"model": "weather", "input": "Thanks!", "previous_response_id": second["id"]}
            ).json()
        assert writer.request(third["id"].removeprefix("resp_"))["messages"] == [
            FIRST,
            ANSWER,
            NEXT,
            ANSWER,
            {"role": "user", "content": "Thanks!"},
        ]
        kind = {"role": "system", "content": "Be kind."}
        assert writer.request(second["id"].removeprefix("resp_"))["messages"] == [kind, FIRST, ANSWER, NEXT]
        told = [each["previous_response_id"] for each in (first, second, third)]
        assert told == [None, first["id"], second["id"]]
        assert http.get(f"/v1/responses/{third['id']}").json()["previous_response_id"] == second["id"]

    @pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
    @pytest.mark.parametrize(
        "response_id", ["resp_" + "x" * 22, "resp_", "nope", "msg_" + "x" * 22, "resp_\N{SNOWMAN}"]
    )
    def test_one_that_is_not_there(
        self, http: httpx.Client, writer: WakingWriter, response_id: str, stream: bool
    ) -> None:
        del writer
        answer = asked(http, NEXT, previous_response_id=response_id, stream=stream)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "previous_response_not_found")
        assert error["param"] == "previous_response_id"
        assert ascii(response_id) in error["message"]

    def test_one_that_failed(self, http: httpx.Client, writer: WakingWriter) -> None:
        response = asked(http, FIRST, background=True).json()["id"]
        request_id = wait_until(writer.take)
        writer.claim(request_id)
        writer.append(request_id, "It")
        writer.finish(request_id, End("failed", "error"))
        answer = asked(http, NEXT, previous_response_id=response)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "previous_response_id")
        assert "that failed" in answer.json()["error"]["message"]

    def test_an_unfinished_one(self, http: httpx.Client, writer: WakingWriter) -> None:
        response = asked(http, FIRST, background=True).json()["id"]
        answer = asked(http, NEXT, previous_response_id=response)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "previous_response_id")
        assert "hasn't ended" in answer.json()["error"]["message"]
        http.post(f"/v1/responses/{response}/cancel")
        with_none = asked(http, NEXT, previous_response_id=response, background=True).json()
        assert writer.request(with_none["id"].removeprefix("resp_"))["messages"] == [FIRST, NEXT]
