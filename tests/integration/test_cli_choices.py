"""`tokenrelay ask --n`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.test_cli import QUESTION, lines, tokenrelay
from tests.writers import End, Writer, serving

if TYPE_CHECKING:
    from tests.redis_servers import RedisServer


@pytest.fixture(autouse=True)
def environment(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENRELAY_REDIS_URL", redis_server.url)
    monkeypatch.setenv("TERM", "dumb")


def test_ask_prints_several_choices(redis_server: RedisServer) -> None:
    """One after the other, though the second one ends first; each JSON line says whose it is."""
    said = {0: ("It", " rains"), 1: ("It", " snows")}

    def respond(writer: Writer, request_id: str) -> None:
        request: Any = writer.request(request_id)
        writer.answer(request_id, said[request.get("choice", 0)])

    with serving(redis_server.url, respond):
        done = tokenrelay("ask", QUESTION, "--n", "2")
        entries = lines(tokenrelay("ask", QUESTION, "--n", "2", "--json").stdout)
        refused = tokenrelay("ask", QUESTION, "--n", "17")
    assert (done.stdout, done.returncode) == ("--- choice 0 ---\nIt rains\n--- choice 1 ---\nIt snows\n", 0)
    ids = list(dict.fromkeys(entry["request_id"] for entry in entries))
    assert ids == [ids[0], f"{ids[0]}-1"]
    assert (refused.stdout, refused.returncode) == ("", 2)
    assert "n: 17" in refused.stderr


def test_ask_shows_the_other_choices_of_one_that_fails(redis_server: RedisServer) -> None:
    def respond(writer: Writer, request_id: str) -> None:
        request: Any = writer.request(request_id)
        end = End("failed", "error", code="internal_error", message="it broke")
        writer.answer(request_id, ("It", " snows"), end if request.get("choice", 0) == 0 else None)

    with serving(redis_server.url, respond):
        done = tokenrelay("ask", QUESTION, "--n", "2")
    assert done.stdout.endswith("--- choice 1 ---\nIt snows\n")
    assert done.returncode == 1
    assert "it broke" in done.stderr
