"""The token-plane scripts on a real Redis beside a model in plain Python, driven by Hypothesis.

Several writers with live, stale and made-up fences append, repeat, leave gaps, die, hang and come back, while others
cancel, expire and delete. After each call the reply and the whole stream must be the model's, and the stream must be
one that every reader's state machine takes. Mutants of the Lua sources show that the model would notice.

Time is passed in: a lease, a suspicion or a deadline that is over is written so, nothing waits.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.integration.scripts.model import MAX_CRASHES, Request
from tests.streams import parsed
from tests.token_plane import LONG_MS, AlteredScripts, TokenPlane, Tokens, beside_others
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.answer import Assembler
from tokenrelay.shared.wire.entries import Entry, Token

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis import Redis

    from tests.token_plane import Reply

EXECUTIONS = ("a1", "a2", "1", "b:1", "")

execution_ids = st.sampled_from(EXECUTIONS)
rarely = st.integers(0, 3).map(lambda value: value == 0)
token_texts = st.lists(st.sampled_from(["a", " b", "é", ""]), max_size=3)


class TokenPlaneMachine(RuleBasedStateMachine):
    """One request after another, each with its model."""

    client: ClassVar[Any]
    alter: ClassVar[Callable[[str], str]]
    replies: ClassVar[Counter[tuple[str, str]]]

    def __init__(self) -> None:
        super().__init__()
        self.send = AlteredScripts(self.client, type(self).alter)
        self.drawn = 0
        self.fences: list[str] = [""]
        self.repeat: Callable[[], None] | None = None

    @initialize(seed=st.integers(0, 2**32), calls=st.integers(0, 150))
    def walk(self, seed: int, calls: int) -> None:
        """Random calls first: alone, Hypothesis prefers short and simple stories, and few get to poison."""
        self._new_request()
        rng = Random(seed)
        for call in rng.choices([call for _, call in WALK], [weight for weight, _ in WALK], k=calls):
            call(self, rng)

    @property
    def owned(self) -> bool:
        return bool(self.model.fence) and self.model.hash_there

    @property
    def open(self) -> bool:
        return self.model.hash_there and not self.model.ended

    def _new_request(self) -> None:
        self.plane = TokenPlane(self.send, keys.new_request_id())
        self.model = Request()
        self.fences = [*self.fences[-2:], "", "9:z"]
        self.repeat = None
        self.calls_behind_the_end = 0
        assert self.plane.create()[0] == "OK"
        self._check()

    def _call(self, script: str, called: Callable[[], Reply], expected: Callable[[], Reply]) -> None:
        def once() -> None:
            reply, wanted = called(), expected()
            self.replies[script, reply[0]] += 1
            if script == "claim" and reply[0] == "OK":
                assert reply.pop(5).isdecimal()
                self.fences.append(reply[1])
            if reply[0] in ("EARLY", "OK") and script in ("expire", "create") and len(wanted) == 1:
                assert str(reply.pop()).isdecimal()
            assert reply == wanted
            self._check()

        once()
        self.repeat = once
        if self.model.ended or not (self.model.hash_there and self.model.stream_there):
            self.calls_behind_the_end += 1
            if self.calls_behind_the_end > 8:
                self._new_request()

    @precondition(lambda self: self.repeat is not None)
    @rule()
    def again(self) -> None:
        """The reply was lost: the same call once more."""
        assert self.repeat is not None
        self.repeat()

    @rule(body=st.sampled_from(["body", "another body"]))
    def create(self, body: str) -> None:
        self._call("create", lambda: self.plane.create(body), lambda: self.model.create(body))

    @rule(execution=execution_ids, other_model=rarely, lease_over=rarely, suspicion_over=st.booleans())
    def claim(self, execution: str, other_model: bool, lease_over: bool, suspicion_over: bool) -> None:
        fingerprint = "other" if other_model else "f"
        lease_ms, suspicion_ms = -1 if lease_over else LONG_MS, 0 if suspicion_over else LONG_MS
        self._call(
            "claim",
            lambda: self.plane.claim(
                execution,
                fingerprint=fingerprint,
                lease_ms=lease_ms,
                suspicion_ms=suspicion_ms,
                max_crashes=MAX_CRASHES,
            ),
            lambda: self.model.claim(execution, fingerprint, lease_over, suspicion_over),
        )

    def _tokens(self, texts: list[str]) -> Tokens:
        # IDs never come twice, so an index that is written again would show.
        self.drawn += len(texts)
        return tuple((text, self.drawn + position) for position, text in enumerate(texts))

    def _fence(self, draw: int) -> str:
        """The live fence half of the time, else any that was ever given out or made up."""
        return self.model.fence if draw >= 0 else self.fences[draw % len(self.fences)]

    @rule(draw=st.integers(-6, 6))
    def score(self, draw: int) -> None:
        fence, self.drawn = self._fence(draw), self.drawn + 1
        logprobs = f"[{self.drawn}]"  # never the same twice, so what is written again would show
        self._call("score", lambda: self.plane.score(fence, logprobs), lambda: self.model.score(fence, logprobs))

    @rule(draw=st.integers(-6, 6), offset=st.integers(-2, 1), texts=token_texts, lease_over=rarely)
    def append(self, draw: int, offset: int, texts: list[str], lease_over: bool) -> None:
        plane = self.plane if self.drawn % 2 else TokenPlane(beside_others(self.send), self.plane.request_id)
        fence, tokens = self._fence(draw), self._tokens(texts)
        index = max(self.model.next + (offset if draw % 2 else 0), 1)
        lease_ms = -1 if lease_over else LONG_MS
        self._call(
            "append",
            lambda: plane.append(fence, index, *tokens, lease_ms=lease_ms),
            lambda: self.model.append(fence, index, tokens, lease_over),
        )

    @rule(draw=st.integers(-6, 2), offset=st.integers(-2, 1), texts=token_texts, held=st.sampled_from(["", "held"]))
    def finish(self, draw: int, offset: int, texts: list[str], held: str) -> None:
        self._finish(self._fence(draw), max(self.model.next + offset, 1), self._tokens(texts), held)

    def _finish(self, fence: str, index: int, tokens: Tokens, held: str) -> None:
        self._call(
            "finish",
            lambda: self.plane.finish(fence, index, *tokens, text=held),
            lambda: self.model.finish(fence, index, tokens, held),
        )

    @rule(really=rarely)
    def cancel(self, really: bool) -> None:
        if really or self.model.ended or not self.model.hash_there:
            self._call("cancel", self.plane.cancel, self.model.cancel)

    @rule()
    def expire(self) -> None:
        self._call("expire", self.plane.expire, self.model.expire)

    @rule(draw=st.integers(-6, 6), lease_over=rarely)
    def renew(self, draw: int, lease_over: bool) -> None:
        fence, lease_ms = self._fence(draw), -1 if lease_over else LONG_MS
        self._call(
            "renew", lambda: self.plane.renew(fence, lease_ms=lease_ms), lambda: self.model.renew(fence, lease_over)
        )

    @rule(execution=execution_ids, crashed=st.booleans())
    def release(self, execution: str, crashed: bool) -> None:
        if self.model.fence and crashed:
            execution = self.model.fence.partition(":")[2]
        self._call(
            "release",
            lambda: self.plane.release(execution, crashed=crashed),
            lambda: self.model.release(execution, crashed),
        )

    @rule(suspicion_over=st.booleans())
    def suspect(self, suspicion_over: bool) -> None:
        suspicion_ms = 0 if suspicion_over else LONG_MS
        self._call(
            "suspect",
            lambda: self.plane.suspect(suspicion_ms=suspicion_ms),
            lambda: self.model.suspect(suspicion_over),
        )

    @precondition(lambda self: self.owned)
    @rule()
    def lease_runs_out(self) -> None:
        self.client.hset(keys.request(self.plane.request_id), "lease_us", 1)
        self.model.lease_over = True

    @precondition(lambda self: self.owned)
    @rule(execution=execution_ids)
    def take_over(self, execution: str) -> None:
        """The writer hangs: its lease runs out, two looks, another one claims; then it wakes up and finishes."""
        zombie = self.model.fence
        self.lease_runs_out()
        self.suspect(suspicion_over=False)
        self.claim(execution, other_model=False, lease_over=False, suspicion_over=True)
        if zombie != self.model.fence:
            self._finish(zombie, self.model.next, (), "")

    @precondition(lambda self: self.open)
    @rule(really=rarely)
    def deadline_passes(self, really: bool) -> None:
        if really:
            self.client.hset(keys.request(self.plane.request_id), "deadline_us", 1)
            self.model.past_deadline = True

    @rule(draw=st.integers(0, 15))
    def delete(self, draw: int) -> None:
        """Somebody deletes a key, or Redis evicts it; now and then."""
        if draw == 0:
            self.client.delete(keys.stream(self.plane.request_id))
            self.model.stream_there = False
        if draw == 1:
            self.client.delete(keys.request(self.plane.request_id))
            self.model.hash_there = False

    def _check(self) -> None:
        """What Redis holds is what the model says, and what every reader takes."""
        request, stream = keys.request(self.plane.request_id), keys.stream(self.plane.request_id)
        with self.client.pipeline(transaction=False) as pipeline:
            pipeline.xrange(stream).hgetall(request).pttl(request).pttl(stream)
            rows, fields, request_ttl_ms, stream_ttl_ms = pipeline.execute()
        if self.model.hash_there:
            self._check_hash({name.decode(): value.decode() for name, value in fields.items()})
        if not self.model.stream_there:
            assert not rows, "a stream must not come back without its prefix"
            return
        self._check_stream([parsed(entry_id, entry) for entry_id, entry in rows])
        assert stream_ttl_ms > 0
        if self.model.hash_there:
            assert abs(request_ttl_ms - stream_ttl_ms) < 100, "both keys go together"

    def _check_stream(self, entries: list[Entry]) -> None:
        tokens = [(entry.text, entry.token_id) for entry in entries if isinstance(entry, Token)]
        events = [(entry.entry_id.token, entry.kind) for entry in entries if not isinstance(entry, Token)]
        assert tokens == self.model.tokens
        assert events == self.model.events
        assembler = Assembler(self.plane.request_id)
        assert all(assembler.receive(entry) for entry in entries)
        assert assembler.text == "".join(text for text, _ in self.model.tokens) + self.model.held_text
        assert [entry.at_us for entry in entries] == sorted(entry.at_us for entry in entries)
        assert all(1.5e15 < entry.at_us < 5e15 for entry in entries), "microseconds in plain digits"
        if self.model.ended:
            answer = assembler.answer()
            assert (answer.state, answer.attempts) == (self.model.state, self.model.attempt)
            assert answer.usage.completion_tokens == len(self.model.tokens)
            assert answer.usage.recomputed_tokens == self.model.recomputed

    def _check_hash(self, fields: dict[str, str]) -> None:
        model = self.model
        assert fields["state"] == model.state
        assert fields["fence"] == model.fence
        assert fields["next"] == str(model.next)
        assert fields["attempt"] == str(model.attempt)
        assert fields.get("prompt_logprobs", "") == model.scored
        assert ("suspect_us" in fields) == model.suspected
        if not model.ended:
            assert fields["crashes"] == str(model.crashes)


def flip(rng: Random, chance: float = 0.5) -> bool:
    return rng.random() < chance


def some_tokens(rng: Random) -> tuple[int, int, list[str]]:
    """Whose fence, how far from the next index, which texts."""
    return rng.randint(-6, 6), rng.randint(-2, 1), rng.choices(["a", " b", "é", ""], k=rng.randint(0, 3))


WALK: list[tuple[float, Callable[[TokenPlaneMachine, Random], object]]] = [
    (5, lambda machine, rng: machine.claim(rng.choice(EXECUTIONS), flip(rng, 0.1), flip(rng, 0.2), flip(rng))),
    (8, lambda machine, rng: machine.append(*some_tokens(rng), flip(rng, 0.2))),
    (2, lambda machine, rng: machine.score(rng.randint(-6, 6))),
    (3, lambda machine, rng: machine.finish(*some_tokens(rng), rng.choice(["", "held"]))),
    (3, lambda machine, rng: machine.renew(rng.randint(-6, 6), flip(rng, 0.2))),
    (3, lambda machine, rng: machine.release(rng.choice(EXECUTIONS), flip(rng))),
    (4, lambda machine, rng: machine.suspect(flip(rng))),
    (8, lambda machine, rng: machine.owned and machine.take_over(rng.choice(EXECUTIONS))),
    (2, lambda machine, rng: machine.owned and machine.lease_runs_out()),
    (4, lambda machine, rng: machine.repeat and machine.again()),
    (3, lambda machine, rng: machine.expire()),
    (1, lambda machine, rng: machine.create(rng.choice(["body", "another body"]))),
    (0.5, lambda machine, rng: machine.cancel(True)),
    (1, lambda machine, rng: machine.open and machine.deadline_passes(True)),
    (0.5, lambda machine, rng: machine.open and (machine.deadline_passes(True), machine.expire())),
    (1, lambda machine, rng: machine.delete(rng.randint(0, 1))),
]
"""What a walk does, and how often."""


def run_model(
    client: Redis, *, alter: Callable[[str], str] = lambda lua: lua, examples: int = 80, derandomize: bool = True
) -> Counter[tuple[str, str]]:
    """Run the machine; the replies that were seen. Raises as soon as a reply or a stream isn't the model's."""
    replies: Counter[tuple[str, str]] = Counter()
    machine = type(
        "Machine", (TokenPlaneMachine,), {"client": client, "alter": staticmethod(alter), "replies": replies}
    )
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=12,
            deadline=None,
            database=None,
            derandomize=derandomize,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    return replies
