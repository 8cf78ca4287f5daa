"""Requests that share a prompt prefill it once: a scheduler for transformers' continuous batching.

The manager's own prefix cache shares whole pages of what was prefilled in an earlier step. Here requests wait while
another one prefills their prompt, and the page that the prompt fills partly is copied: only the prompt's last token,
whose scores the first draw needs, is computed again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from transformers.generation.continuous_batching.requests import RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler
from transformers.generation.continuous_batching.utils import stream_context

from tokenrelay.worker.engine.transformers.sampling_rows import live_request

if TYPE_CHECKING:
    import torch
    from transformers.generation.continuous_batching.cache_allocators import CacheAllocator
    from transformers.generation.continuous_batching.requests import RequestState

SCHEDULER: Final = "prompt_sharing"
"""For `ContinuousBatchingConfig.scheduler_type`."""


class PromptSharingScheduler(FIFOScheduler):
    """First in, first out, but for requests whose prompt another one is about to prefill: they begin a step later.

    That one leaves the prompt's last token to the next step, so that it is still there for them, however few tokens it
    generates.
    """

    compute_stream: torch.cuda.Stream | None = None
    """Where the model writes to the cache, so that a copy comes behind what is still to be written."""

    def _get_waiting_candidates(self) -> list[RequestState]:
        waiting: list[RequestState] = super()._get_waiting_candidates()
        if not any(map(_shared_prompt, waiting)):
            return waiting
        prefilling = {_shared_prompt(state) for state in self.active_requests.values()}
        prefilling -= {_shared_prompt(state) for state in self.active_requests.values() if _tokens_to_share(state) < 1}
        candidates = []
        for state in waiting:
            prompt = _shared_prompt(state)
            if prompt in prefilling and not state.is_cpu_offloaded:
                continue
            candidates.append(state)
            if prompt and self._source(state) is None:
                prefilling.add(prompt)
        return candidates

    def _infer_request_tokens(self, state: RequestState, request_ids_to_remove_from_waiting: set[str]) -> list[int]:
        begins = state.status == RequestStatus.PENDING and not state.is_cpu_offloaded
        tokens: list[int] = super()._infer_request_tokens(state, request_ids_to_remove_from_waiting)
        source = self._source(state) if begins and self.cache.use_prefix_sharing else None
        missing = _tokens_to_share(state)
        if source is None or missing < 1 or not self._share(source, state):
            return tokens
        # As where the manager itself finds a prefix in the cache.
        self.active_requests[state.request_id] = state
        self.waiting_requests.pop(state.request_id, None)
        request_ids_to_remove_from_waiting.add(state.request_id)
        state.status = RequestStatus.PREFILLING
        state.remaining_prefill_tokens = tokens[missing:]
        state.position_offset += missing
        return state.remaining_prefill_tokens

    def _schedule_request(
        self,
        state: RequestState,
        request_tokens: list[int],
        token_budget: int,
        request_ids_to_remove_from_waiting: set[str],
    ) -> None:
        missing = _tokens_to_share(state)
        budget = min(token_budget, missing) if missing > 0 else token_budget
        super()._schedule_request(state, request_tokens, budget, request_ids_to_remove_from_waiting)

    def _source(self, state: RequestState) -> RequestState | None:
        """A request whose cache has all of the state's prompt that can be shared."""
        prompt = _shared_prompt(state)
        others = [other for other in self.active_requests.values() if prompt and other is not state]
        ready = (other for other in others if _tokens_to_share(other) < 1)
        return next((other for other in ready if _shared_prompt(other) == prompt), None)

    def _share(self, source: RequestState, state: RequestState) -> bool:
        """Give the state the source's cache of what can be shared, if there's room for a copied page."""
        allocators = self.cache.cache_allocators.values()
        if not all(self._has_room(allocator) for allocator in allocators):
            return False
        length = len(_shared_prompt(state)) - 1
        with stream_context(self.compute_stream):
            for allocator in allocators:
                share_pages(allocator, source.request_id, state.request_id, length)
        return True

    def _has_room(self, allocator: CacheAllocator) -> bool:
        """Whether there's a page to copy to."""
        pool = self.cache.pool
        if not pool.count_free_blocks(allocator.index) and pool.num_free_sectors:
            pool.allocate_sector(allocator.index)
        return bool(pool.count_free_blocks(allocator.index))


def share_pages(allocator: CacheAllocator, source_id: str, request_id: str, length: int) -> None:
    """Share the whole pages of the source's first `length` tokens with a request, and copy the last, partial one."""
    pages, rest = divmod(length, allocator.tokens_per_page)
    source, table = allocator.block_table[source_id], allocator.block_table.setdefault(request_id, [])
    for block in source[len(table) : pages]:
        allocator.ledger.acquire(block)
        table.append(block)
    if rest and len(table) == pages:
        copies = allocator.pool.get_free_blocks(allocator.index, 1)
        allocator.copy_blocks([source[pages]], copies)
        table += copies


def _shared_prompt(state: RequestState) -> tuple[int, ...]:
    """The prompt that the request shares with others; empty where it shares none, or computes all of it itself for the
    prompt's log-probabilities."""
    live = live_request(state)
    if live is None or not live.request.shares_prompt or live.scores_prompt:
        return ()
    return live.request.prompt_ids


def _tokens_to_share(state: RequestState) -> int:
    """How many tokens of the shared prompt, but its last, the cache of the request lacks; 0 or less: none."""
    return len(_shared_prompt(state)) - 1 - state.position_offset


SCHEDULER_MAPPING[SCHEDULER] = PromptSharingScheduler
