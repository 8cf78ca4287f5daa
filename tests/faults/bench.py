"""What every row of the table is given, and what all rows do alike."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.faults.rounds import Round
from tests.faults.site import Plan, Site
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.faults.load import Text
    from tests.faults.nursery import Nursery
    from tests.faults.site import Worker
    from tests.faults.verdict import Tally

STREAMS: Final = 8


@dataclass(frozen=True, slots=True)
class Bench:
    """The suite's means: where processes come from, the texts and how they must come out, how many runs."""

    folder: Path
    nursery: Nursery | None
    texts: Sequence[Text]
    runs: int
    seed: int
    texts_float32: Sequence[Text] = field(default=())

    def site(self, tally: Tally, plan: Plan | None = None) -> Site:
        return Site(self.folder / tally.fault.replace(" ", "-").replace(",", ""), self.nursery, plan or Plan())

    def rng(self, tally: Tally) -> random.Random:
        """Each row's own, so that a row alone breaks things at the same moments as among the others."""
        return random.Random(f"{self.seed} {tally.fault}")

    def rounds(self, site: Site, tally: Tally, inject: Callable[[Round], None], url: str = "") -> None:
        """The row's runs: fresh streams, the fault, the comparison. `url`: where consumers read, if not directly."""
        rng = self.rng(tally)
        for _ in range(tally.needed):
            current = Round(site, tally, rng, rng.sample(list(self.texts), STREAMS), url)
            inject(current)
            current.finish()


def at_least_ready(site: Site, number: int) -> None:
    """Wait until so many workers can take over."""
    wait_until(lambda: sum(worker.ready() for worker in site.workers) >= number, 90)


def renew(site: Site, worker: Worker) -> None:
    """Put a fresh worker in the place of one that was broken, and don't wait for it while two others are there."""
    site.replace(worker, wait=False)
    at_least_ready(site, 2)
