"""Each option and mixes of them, resumed at random tokens. `python -m tests.resumes` prints what is asserted here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from tests.resumes.__main__ import problems
from tests.resumes.controls import forgets, forgets_position
from tests.resumes.cuts import IN_CHARACTER, IN_HELD_TEXT, IN_STRING
from tests.resumes.requests import KINDS
from tests.resumes.suite import run
from tests.resumes.takeovers import Worker
from tokenrelay.worker.engine.transformers.models import load_model
from tokenrelay.worker.models import weather_model_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.resumes.suite import Outcome
    from tokenrelay.worker.engine.transformers.models import LoadedModel


@pytest.fixture(scope="module", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load() -> LoadedModel:
    return load_model(str(weather_model_path()), device="cpu", dtype="float64")


def test_a_stream_of_every_kind_is_resumed_and_verified() -> None:
    """Verified: the draw, made again at every position of a plain forward pass, gives the same tokens."""
    for kind, outcome in run(load, streams=1, takeovers=2, tokens=16, seed=3).items():
        assert outcome.changed == outcome.rounded == [], kind
        assert (outcome.verified, outcome.unfit) == (1, []), kind
        assert outcome.streams[0].measured.changed > 0, kind


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    return run(load, streams=32, takeovers=2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_576_streams_are_the_undisturbed_ones_after_1152_takeovers(outcomes: dict[str, Outcome]) -> None:
    assert [problem for each in outcomes.values() for problem in problems(each, "float64")] == []
    assert {kind: each.counted for kind, each in outcomes.items() if each.counted < len(each.streams) / 2} == {}
    assert sum(each.counted for each in outcomes.values()) >= 500
    inside = {
        place: sum(each.inside[place] for each in outcomes.values())
        for place in (IN_STRING, IN_CHARACTER, IN_HELD_TEXT)
    }
    assert all(number >= 20 for number in inside.values()), inside


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if forgets(kind) or kind != "choice"])
def test_a_resume_that_forgot_its_state_would_be_noticed(outcomes: dict[str, Outcome], kind: str) -> None:
    """The noise's position, and the state of the kind's own option, where it has any."""
    controls = [control for control in (forgets_position, forgets(kind)) if control]
    with Worker(load()) as worker:
        for control in controls:
            streams = [each for each in outcomes[kind].streams if len(each.answer.tokens) >= 8][:8]
            noticed = [control(worker, each, len(each.answer.tokens) // 2) for each in streams]
            assert len(noticed) >= 4
            # Not each: two bad words look back by one token, and text is held back at some cuts only.
            assert sum(noticed) >= len(noticed) / 4, (control, noticed)
