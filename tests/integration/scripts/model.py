"""What the token-plane scripts should make of one request, in plain Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from tests.token_plane import Reply, Tokens

MAX_CRASHES = 3
TERMINAL = {state.value for state in State if state.terminal}
FENCED, LOST = ["FENCED"], ["LOST"]


@dataclass
class Request:
    """What the scripts should have made of one request."""

    body: str = "body"
    hash_there: bool = True
    stream_there: bool = True
    state: str = "queued"
    fence: str = ""
    finished_by: str = ""
    fingerprint: str | None = None
    attempt: int = 0
    crashes: int = 0
    recomputed: int = 0
    lease_over: bool = False
    suspected: bool = False
    past_deadline: bool = False
    tokens: list[tuple[str, int]] = field(default_factory=list)
    events: list[tuple[int, str]] = field(default_factory=lambda: [(0, "queued")])
    held_text: str = ""
    scored: str = ""

    @property
    def next(self) -> int:
        return len(self.tokens) + 1

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    def event(self, kind: str) -> bool:
        """Write an event; False where there's no stream to write it to."""
        if self.stream_there:
            self.events.append((len(self.tokens), kind))
        return self.stream_there

    def terminate(self, state: str, text: str = "", finished_by: str = "") -> bool:
        if not self.event(state):
            return False
        self.state, self.fence, self.finished_by, self.held_text = state, "", finished_by, text
        self.lease_over = self.suspected = False
        return True

    def free(self, *, crashed: bool) -> None:
        self.fence, self.lease_over, self.suspected = "", False, False
        self.crashes += crashed

    def closed(self) -> Reply | None:
        """What every script but create says of a request that's gone or ended."""
        if not self.hash_there:
            return LOST
        return ["DONE", self.state] if self.ended else None

    def fenced(self, fence: str) -> bool:
        return not fence or fence != self.fence

    def create(self, body: str) -> Reply:
        if not self.hash_there:
            self.__dict__.update(Request(body).__dict__)
            return ["OK"]
        return ["ATTACHED", self.state] if body == self.body else ["CONFLICT"]

    def claim(self, execution: str, fingerprint: str, lease_over: bool, suspicion_over: bool) -> Reply:
        if not (self.hash_there and self.stream_there):
            return LOST
        if self.ended:
            return ["DONE", self.state]
        if self.fence != f"{self.attempt}:{execution}":
            if self.past_deadline:
                return ["PAST"]
            if self.fingerprint not in (None, fingerprint):
                return ["NOT_MINE", "fingerprint"]
            if self.fence:
                if not (self.lease_over and self.suspected and suspicion_over):
                    return ["BUSY"]
                self.crashes += 1
            if self.crashes >= MAX_CRASHES:
                self.terminate("failed")
                return ["POISON"]
            self.attempt += 1
            self.fingerprint = fingerprint
            self.recomputed += 3 + len(self.tokens) if self.attempt > 1 else 0
            self.event("started" if self.attempt == 1 else "migrated")
            self.state, self.fence = "in_progress", f"{self.attempt}:{execution}"
            self.lease_over, self.suspected = lease_over, False
        emitted = [item for text, token in self.tokens for item in (str(token), text)]
        return ["OK", self.fence, self.attempt, self.next, self.crashes, "[5, 6, 7]", emitted, "", []]

    def _write(self, index: int, tokens: Tokens) -> Reply | None:
        if index > self.next:
            return ["GAP", self.next]
        for token in tokens:
            if index == self.next:
                if not self.stream_there:
                    return LOST
                self.tokens.append(token)
                self.crashes = 0
            index += 1
        return None

    def score(self, fence: str, logprobs: str) -> Reply:
        if refusal := self.closed():
            return refusal
        if self.fenced(fence):
            return FENCED
        self.scored = self.scored or logprobs
        return ["OK"]

    def append(self, fence: str, index: int, tokens: Tokens, lease_over: bool) -> Reply:
        if refusal := self.closed():
            return refusal
        if self.fenced(fence):
            return FENCED
        if self.past_deadline:
            return ["PAST"]
        if refusal := self._write(index, tokens):
            return refusal
        self.lease_over, self.suspected = lease_over, False
        return ["OK", self.next]

    def finish(self, fence: str, index: int, tokens: Tokens, text: str) -> Reply:
        if self.hash_there and self.ended and self.finished_by == fence and fence:
            return ["OK"]
        if refusal := self.closed():
            return refusal
        if self.fenced(fence):
            return FENCED
        if refusal := self._write(index, tokens):
            return refusal
        return ["OK"] if self.terminate("completed", text, fence) else LOST

    def cancel(self) -> Reply:
        if refusal := self.closed():
            return refusal
        fence = self.fence
        return ["OK", fence] if self.terminate("cancelled") else LOST

    def expire(self) -> Reply:
        if refusal := self.closed():
            return refusal
        if not self.past_deadline:
            return ["EARLY"]
        state = "incomplete" if self.tokens else "expired"
        return ["OK", state] if self.terminate(state) else LOST

    def renew(self, fence: str, lease_over: bool) -> Reply:
        if refusal := self.closed():
            return refusal
        if self.fenced(fence):
            return FENCED
        self.lease_over, self.suspected = lease_over, False
        return ["PAST"] if self.past_deadline else ["OK"]

    def release(self, execution: str, crashed: bool) -> Reply:
        if refusal := self.closed():
            return refusal
        if self.fence != f"{self.attempt}:{execution}":
            return FENCED
        self.free(crashed=crashed)
        return ["OK"]

    def suspect(self, suspicion_over: bool) -> Reply:
        if refusal := self.closed():
            return refusal
        if not self.fence:
            return ["FREE"]
        if not self.lease_over:
            return ["LIVE"]
        if not (self.suspected and suspicion_over):
            self.suspected = True
            return ["SUSPECT"]
        self.free(crashed=True)
        return ["RELEASED"]
