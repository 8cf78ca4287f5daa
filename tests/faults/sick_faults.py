"""Requests that are sick themselves, beside others that aren't: NaN, no finite logit, a tokenizer that raises, a long
prefill. They fail alone, or not at all; nobody else's text changes, and no worker dies."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Final

from rq.suspension import resume, suspend

from tests.engines import counted_token
from tests.faults.children import FUSSY, INVALID_SEED, NAN_WORD, POISON_LENGTH, SLOW_STEP_S, SLOW_WORD
from tests.faults.load import await_end, entries, submit, undisturbed
from tests.faults.rounds import Round
from tests.faults.site import Plan
from tests.faults.verdict import milliseconds
from tests.integration.test_worker_faults import AT, BAD, SICK
from tests.workers import MODEL, VOCABULARY
from tokenrelay.shared.wire.entries import Ended, Token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.faults.bench import Bench
    from tests.faults.site import Site
    from tests.faults.verdict import Tally
    from tokenrelay.producer import Entry, Submission

INNOCENT: Final = 31
STALL_S: Final = 2
PAIRS: Final = 5
FUSSY_TOKENS: Final = 60
SICK_PROMPT: Final[Submission] = {"prompt": " ".join([NAN_WORD] * POISON_LENGTH), "max_new_tokens": 64, "seed": 1}
INVALID: Final[Submission] = {
    "prompt": "What is the weather today?", "seed": INVALID_SEED, "temperature": 1.0, "max_new_tokens": 64,
    "ignore_eos": True,
}  # fmt: skip


def _beside(bench: Bench, tally: Tally, sick: Submission, code: str) -> None:
    """One sick request beside 31 others, in one worker."""
    rng = bench.rng(tally)
    with bench.site(tally, Plan(workers=1, settings={"SLOTS": str(INNOCENT + 1)})) as site:
        for number in range(tally.needed):
            texts = rng.sample(list(bench.texts), INNOCENT)
            if number % 2 == 0:  # first in a batch with all the others, from their first token on
                suspend(site.redis)
                (request_id,) = submit(site, [sick])
                current = Round(site, tally, rng, texts)
                resume(site.redis)
            else:
                current = Round(site, tally, rng, texts)
                current.await_moment(rng.uniform(0, 0.8))
                (request_id,) = submit(site, [sick])
            _fails(site, tally, request_id, code)
            current.finish()
    tally.require(tally.takeovers == 0, "a sick request takes no worker down")


def _fails(site: Site, tally: Tally, request_id: str, code: str) -> None:
    await_end(site, [request_id])
    end = entries(site, [request_id])[0][-1]
    tally.require(isinstance(end, Ended) and end.code == code, f"the sick request ends as {code}: {end}")


def undecodable(bench: Bench, tally: Tally) -> None:
    """A token of one request that its tokenizer raises at, with 31 others in flight."""
    rng = bench.rng(tally)
    settings = {"SERVED_MODEL": MODEL, "SLOTS": str(INNOCENT + 1)}
    healthy = [seed for seed in range(1000, 3000) if BAD not in _counted(seed)]
    with bench.site(tally, Plan(workers=1, settings=settings, kind=FUSSY)) as site:
        for _ in range(tally.needed):
            seeds = [*rng.sample(healthy, INNOCENT), SICK]
            request_ids = submit(site, [_counting(seed) for seed in seeds])
            await_end(site, request_ids)
            for seed, stream in zip(seeds, entries(site, request_ids), strict=True):
                tokens = [entry.token_id for entry in stream if isinstance(entry, Token)]
                tally.streams += 1
                tally.tokens += len(tokens)
                end = stream[-1]
                assert isinstance(end, Ended), end
                if seed == SICK:
                    right = end.code == "internal_error" and tokens == _counted(seed)[: AT - 1]
                    tally.require(right, f"the sick request: {end}, after {len(tokens)} tokens")
                else:
                    tally.changed += tokens != _counted(seed)
            tally.runs += 1


def _counting(seed: int) -> Submission:
    return {"prompt": "w1", "model": MODEL, "seed": seed, "max_new_tokens": FUSSY_TOKENS}


def _counted(seed: int) -> list[int]:
    return [counted_token(seed, position, VOCABULARY) for position in range(1, FUSSY_TOKENS + 1)]


def long_prefill(bench: Bench, tally: Tally) -> None:
    """A prompt whose prefill takes longer than the stall timeout, in an idle worker: no token is a sign of life."""
    slots = 8  # and so many tokens a step
    steps = int(2.5 * STALL_S / SLOW_STEP_S)
    prompt = " ".join([SLOW_WORD] * slots * steps)
    slow: Submission = {"prompt": prompt, "max_new_tokens": 32, "seed": 5, "ignore_eos": True}
    step = {"SLOTS": str(slots), "MAX_BATCH_TOKENS": str(slots)}
    plan = Plan(workers=1, settings=step)
    with bench.site(tally, plan) as site:
        texts = undisturbed(site, [slow])
    with bench.site(tally, Plan(workers=1, settings={**step, "STALL_TIMEOUT_S": str(STALL_S)})) as site:
        for _ in range(tally.needed):
            Round(site, tally, bench.rng(tally), texts).finish()
    tally.require(tally.takeovers == 0, "a long prefill is no hang")


def pace(bench: Bench, tally: Tally) -> None:
    """How much longer the others wait between tokens beside a sick request, in pairs of waves with and without it."""
    rng, steps, longer, tally.needed = bench.rng(tally), list[float](), list[float](), PAIRS
    with bench.site(tally, Plan(workers=1, settings={"SLOTS": str(INNOCENT + 1)})) as site:
        for number in range(PAIRS):
            texts = rng.sample(list(bench.texts), INNOCENT)
            p95_s = {}
            for is_sick in (False, True) if number % 2 else (True, False):
                suspend(site.redis)
                sick = submit(site, [SICK_PROMPT if number % 2 else INVALID] if is_sick else [])
                current = Round(site, tally, rng, texts)
                resume(site.redis)
                current.finish(further=True)
                gaps = sorted(_gaps(entries(site, current.request_ids)))
                p95_s[is_sick] = gaps[int(len(gaps) * 0.95)]
                if is_sick:
                    _fails(site, tally, sick[0], "invalid_logits")
                else:
                    steps.append(median(gaps))
            longer.append(p95_s[True] - p95_s[False])
            tally.runs += 1
    tally.notes.append(
        f"p95 between tokens beside a sick request: {milliseconds(longer)} ms longer (p50 / max of pairs)"
    )
    tally.notes.append(f"a step: {milliseconds(steps)} ms")
    tally.require(median(longer) <= median(steps), "p95 between tokens is within one step of that without it")


def _gaps(streams: Sequence[Sequence[Entry]]) -> list[float]:
    tokens = [[entry.at_us for entry in stream if isinstance(entry, Token)] for stream in streams]
    return [(after - before) / 1e6 for times in tokens for before, after in pairwise(times)]


FAULTS: Final[dict[str, Callable[[Bench, Tally], None]]] = {
    "NaN hidden state, 31 beside": partial(_beside, sick=SICK_PROMPT, code="invalid_logits"),
    "no finite logit, 31 beside": partial(_beside, sick=INVALID, code="invalid_logits"),
    "undecodable token, 31 beside": undecodable,
    "pace beside a sick request": pace,
    "prefill longer than the stall timeout": long_prefill,
}
