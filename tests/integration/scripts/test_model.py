"""The token-plane scripts do as their model, whatever order things come in; see machine.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.scripts.machine import run_model

if TYPE_CHECKING:
    from tests.redis_servers import RedisServer

REFUSALS = {
    "create": {"OK", "ATTACHED", "CONFLICT"},
    "claim": {"OK", "BUSY", "DONE", "PAST", "POISON", "NOT_MINE", "LOST"},
    "score": {"OK", "FENCED", "DONE", "LOST"},
    "append": {"OK", "FENCED", "DONE", "PAST", "GAP", "LOST"},
    "finish": {"OK", "FENCED", "DONE", "GAP", "LOST"},
    "cancel": {"OK", "DONE", "LOST"},
    "expire": {"OK", "EARLY", "DONE", "LOST"},
    "renew": {"OK", "FENCED", "DONE", "PAST", "LOST"},
    "release": {"OK", "FENCED", "DONE", "LOST"},
    "suspect": {"LIVE", "SUSPECT", "RELEASED", "FREE", "DONE", "LOST"},
}


def test_scripts_do_as_the_model_and_every_reply_is_seen(redis_server: RedisServer) -> None:
    wanted = {(script, word) for script, words in REFUSALS.items() for word in words}
    with redis_server.client() as client:
        seen = run_model(client)
        for _ in range(4):  # what hypothesis makes up depends on the modules that other tests have imported
            if not wanted <= set(seen):
                seen += run_model(client, derandomize=False)
    assert wanted == set(seen), "a reply that no example provoked is a reply that no example checked"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_scripts_do_as_the_model_on_fresh_examples(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        run_model(client, examples=300, derandomize=False)
