"""Choices whose worker is killed in the middle of their answers: each comes out as the undisturbed one."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.faults.site import Plan, Site
from tests.waiting import wait_until
from tokenrelay.producer import Producer
from tokenrelay.shared.wire.entries import Migrated, Started

if TYPE_CHECKING:
    from pathlib import Path

    from tokenrelay.producer import Generation
    from tokenrelay.shared.wire.answer import Answer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.one_server]
ASKED: Final[dict[str, Any]] = {
    "prompt": "What is the weather like in the north today?",
    "temperature": 3.0,
    "max_new_tokens": 400,
    "seed": 11,
    "ignore_eos": True,
}
"""Nearly every token is a surprise at this temperature, so that a wrong one can't be drawn by chance."""


def drawn(answer: Answer) -> list[tuple[int, str]]:
    return [(token.token_id, token.text) for token in answer.tokens]


def worker_of(generation: Generation) -> str:
    claims = (entry for entry in generation.entries() if isinstance(entry, Started | Migrated))
    return next(claims).worker


def test_four_choices_survive_their_worker_each_by_itself(tmp_path: Path) -> None:
    """The child is killed when each of four has 20 to 400 tokens; choice 2 alone is cancelled before. The others'
    tokens are those of the undisturbed run, and of calls for one, two and four."""
    with Site(tmp_path, None, Plan(workers=1)) as site, Producer(site.server.url) as producer:
        whole = [drawn(each.result(120)) for each in producer.submit_choices(**ASKED, n=4)]
        for n in (1, 2):
            fewer = producer.submit_choices(**ASKED, n=n)
            assert [drawn(each.result(120)) for each in fewer] == whole[:n]
        assert drawn(producer.submit(**ASKED).result(120)) == whole[0]
        assert len({tuple(tokens) for tokens in whole}) == 4

        cut = producer.submit_choices(**ASKED, n=4)
        wait_until(lambda: all(each.status().tokens >= 20 for each in cut), 60)
        assert cut[2].cancel()
        before = [each.status().tokens for each in cut]
        site.worker(worker_of(cut[0])).signal_child(signal.SIGKILL)
        answers = [cut[k].result(120) for k in (0, 1, 3)]
        assert max(before) < 400, "killed too late for all of them"
        assert [drawn(answer) for answer in answers] == [whole[k] for k in (0, 1, 3)]
        assert [answer.attempts for answer in answers] == [2, 2, 2]
        assert cut[2].status().state == "cancelled"
