"""The default engine: transformers' continuous batching behind the `Engine` contract.

Owns the manager: which requests get in, whose results are delivered, and the detection of its death. Knows nothing of
Redis, RQ or text.
"""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.continuous_api import OutputRouter
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus

from tokenrelay.shared.errors import EngineError
from tokenrelay.worker.engine.contract import (
    GRAMMAR_DEAD_END,
    INVALID_LOGITS,
    NO_TOKEN_LEFT,
    CacheUse,
    Capabilities,
    EngineDied,
    EngineOutput,
    EngineOutputs,
    EngineRequest,
    ModelError,
    RequestFailure,
)
from tokenrelay.worker.engine.output_queue import OutputQueue
from tokenrelay.worker.engine.transformers.kv_cache import CacheSize, EngineSettings, plan_cache
from tokenrelay.worker.engine.transformers.layers.attention import attend_request_by_request
from tokenrelay.worker.engine.transformers.layers.packed_attention import contain_packed_attention
from tokenrelay.worker.engine.transformers.layers.prompt_scores import can_score_prompts, compute_whole_prompts
from tokenrelay.worker.engine.transformers.model_errors import mute_manager, translate_errors
from tokenrelay.worker.engine.transformers.probing import EngineProbe, Trial
from tokenrelay.worker.engine.transformers.prompt_sharing import SCHEDULER, PromptSharingScheduler
from tokenrelay.worker.engine.transformers.sampling_rows import (
    LiveRequest,
    PositionKeyedSampler,
    adjust_without_graph,
    draw_without_softmax,
)
from tokenrelay.worker.engine.transformers.self_test import SelfTest
from tokenrelay.worker.sampling.params import DRAW_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from transformers import PreTrainedModel
    from transformers.generation.continuous_batching import ContinuousBatchingManager
    from transformers.generation.continuous_batching.cache import PagedAttentionCache
    from transformers.generation.continuous_batching.continuous_api import ContinuousMixin
    from transformers.generation.continuous_batching.requests import GenerationOutput

    from tokenrelay.worker.engine.contract import Deliver
    from tokenrelay.worker.engine.transformers.models import LoadedModel

log = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 10.0
_NO_EOS = -1  # the manager's value for "none"; None means the generation config's


class _PushingRouter(OutputRouter):
    """Hands the manager's results to `receive` in the manager's thread, a step's at once, instead of queueing them."""

    def __init__(self, receive: Callable[[Sequence[GenerationOutput]], None]) -> None:
        super().__init__()
        self._receive = receive

    def deliver(self, output: GenerationOutput) -> None:
        self._receive([output])

    def deliver_batch(self, outputs: list[GenerationOutput]) -> None:
        self._receive(outputs)


class TransformersEngine:
    """`Engine` over one model on one device."""

    def __init__(self, loaded: LoadedModel, settings: EngineSettings | None = None) -> None:
        self._settings = settings or EngineSettings()
        self._loaded = loaded
        with translate_errors(loaded.model):
            self._plan = plan_cache(loaded, self._settings)
        self.capabilities = Capabilities(
            slots=self._settings.slots,
            context_tokens=min(loaded.context_tokens, self._plan.tokens or loaded.context_tokens),
            vocabulary=int(loaded.model.config.get_text_config().vocab_size),
            options=DRAW_OPTIONS | {"ignore_eos", "logprobs", "response_format"} | _prompt_options(loaded.model),
            device=str(loaded.device),
            dtype=str(loaded.dtype).removeprefix("torch."),
        )
        self._live: dict[str, LiveRequest] = {}
        self._death: EngineError | None = None
        self._dying = threading.Lock()
        self._allocated = False
        self._early = OutputQueue()  # of the requests that `prepare` runs itself
        self._deliver: Deliver = self._early.deliver
        if loaded.device.type == "cpu":
            attend_request_by_request()
        else:
            contain_packed_attention()
        # The text model's: another part of the model may support only another kind of attention.
        self._own_attention = str(loaded.model.config.get_text_config()._attn_implementation)
        self._sampler = PositionKeyedSampler()
        with translate_errors(loaded.model):
            self._manager = self._new_manager()
        self._progress = 0
        self._hooks = [layer.register_forward_pre_hook(self._count_layer) for layer in _layers(loaded.model)]

    @property
    def progress(self) -> int:
        """Layers begun: a step of many tokens on a slow device takes minutes, one layer of it seconds."""
        return self._progress

    def _count_layer(self, *_: object) -> None:
        self._progress += 1

    def _new_manager(self) -> ContinuousBatchingManager:
        plan = self._plan
        # Only a cache that holds every slot at full length needs no safety margin: a smaller one would admit prefills
        # whose decode has to be evicted again.
        roomy = plan.tokens is not None and plan.tokens >= self.capabilities.slots * self._loaded.context_tokens
        model = cast("ContinuousMixin", self._loaded.model)
        manager = model.init_continuous_batching(
            # The manager is greedy: it takes the argmax of the scores that our sampler returns.
            generation_config=GenerationConfig(do_sample=False, eos_token_id=_NO_EOS),  # type: ignore[no-untyped-call]
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=plan.page_tokens,
                num_blocks=plan.pages,
                max_batch_tokens=plan.batch_tokens,
                max_requests_per_batch=self.capabilities.slots,
                # Resolved before our sampler is installed: the manager's own choice would leave it no memory.
                max_memory_percent=0.8 if self._loaded.device.type == "cuda" else None,
                safety_margin=0.0 if roomy else None,
                scheduler_type=SCHEDULER,
                auto_switch_to_flash=self._loaded.device.type == "cuda",
                # Not for their values: they show which rows had no valid score (see `_valid`).
                return_logprobs=True,
            ),
        )
        manager.logit_processor = self._sampler
        manager.output_router = _PushingRouter(self._receive)
        return manager

    def prepare(self) -> None:
        """Allocate the KV cache and start the engine's thread; then run prefill and decode alone and with every slot
        taken, since a process's first steps are slow, and compare the engine with the model's own forward pass.

        Raises ModelError where the cache doesn't fit, or the model can't be served by this engine.
        """
        if not self._allocated:
            self.allocate()
        with mute_manager(), translate_errors(self._loaded.model):
            try:
                trial = Trial(self, self._early)
                trial.fill_slots()
                probe = EngineProbe(trial, self._sampler)
                model, batch_tokens = self._loaded.model, self._plan.batch_tokens
                SelfTest(model, probe, self._own_scores, self.capabilities.context_tokens, batch_tokens).run()
            except EngineError as error:
                raise self._fatal_error() or error from error

    def allocate(self) -> None:
        """Allocate the KV cache's memory and start the engine's thread. Raises ModelError where it doesn't fit."""
        try:
            # Allocates the cache here rather than in the manager's thread, whose errors nobody catches.
            with translate_errors(self._loaded.model, (MemoryError, RuntimeError)):
                self._manager.warmup()
        except (MemoryError, RuntimeError) as error:
            raise ModelError(
                f"the KV cache doesn't fit on {self._loaded.device}: {error} "
                f"(kv_cache_tokens={self._settings.kv_cache_tokens}, slots={self.capabilities.slots}, "
                f"max_batch_tokens={self._plan.batch_tokens})"
            ) from error
        processor = self._manager.batch_processor
        if processor is None:
            raise ModelError("the batch processor wasn't made")
        if self._loaded.device.type == "cpu":
            draw_without_softmax(processor.model_runner)
        adjust_without_graph(processor.model_runner, self._sampler)
        compute_whole_prompts(processor.cache, self._scores_prompt)
        if isinstance(processor.scheduler, PromptSharingScheduler):
            processor.scheduler.compute_stream = processor.inputs_and_outputs.compute_stream
        context_tokens = _largest_request(processor.cache, self._loaded.context_tokens)
        self.capabilities = replace(self.capabilities, context_tokens=context_tokens)
        self._manager.start()
        threading.Thread(target=self._watch, name="engine-watch", daemon=True).start()
        self._allocated = True
        log.info(
            "engine on %s: %s slots, %s tokens a request", self._loaded.device, self.capabilities.slots, context_tokens
        )
        size = CacheSize(
            tokens=processor.cache.num_blocks * self._plan.page_tokens,
            size_bytes=processor.cache.cache_tensor.nbytes,
            all_slots_tokens=self.capabilities.slots * self._loaded.context_tokens,
        )
        log.info("KV cache on %s: %s", self._loaded.device, size)

    def start(self, deliver: Deliver) -> None:
        """Deliver from now on. Allocates first, without a warm-up or a check, where `prepare` wasn't called."""
        if not self._allocated:
            self.allocate()
        with self._dying:
            self._deliver = deliver
            if self._death is not None:
                deliver(EngineDied(self._death))

    def stop(self) -> None:
        """End the engine's thread. Requests in it get no more outputs."""
        with self._dying:
            self._death = self._death or EngineError("the engine was stopped")
        self._live.clear()
        self._manager.stop(block=True, timeout=_STOP_TIMEOUT_S, hard_stop=True)
        for hook in self._hooks:
            hook.remove()

    def cache_use(self) -> CacheUse | None:
        """How full the KV cache is, for any thread; None before `allocate`, and after death and `stop`."""
        processor = self._manager.batch_processor
        if processor is None or self._death is not None:
            return None
        try:
            cache = processor.cache
            free = cache.pool.num_free_sectors / cache.num_sectors
            return CacheUse(cache.num_blocks * self._plan.page_tokens, 1.0 - free)
        except AttributeError:  # the manager's own fields, which another version may name otherwise
            return None

    def _fatal_error(self) -> Exception | None:
        """The exception that ended the manager's thread: a failed result carries only its text."""
        thread, status = self._manager._generation_thread, self._manager.background_thread_status
        if self._death is None or thread is None:
            return None
        thread.join(_STOP_TIMEOUT_S)
        return status.fatal_error

    def _own_scores(self, token_ids: Sequence[int]) -> torch.Tensor:
        """The scores after each token of a sequence, by the model's own forward pass: (tokens, vocab). Only while the
        engine is idle."""
        model = self._loaded.model
        batched = model.config.get_text_config()._attn_implementation
        model.set_attn_implementation(self._own_attention)
        try:
            with torch.no_grad():
                input_ids = torch.tensor([token_ids], device=self._loaded.device)
                scores: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits[0]
        finally:
            model.set_attn_implementation(batched)
        return scores

    def add(self, request: EngineRequest) -> None:
        """Begin a request that `admit` let in. Raises EngineError if the engine is dead.

        A request whose emitted tokens already fill its budget ends as `length` at once.
        """
        self._check_alive()
        if request.engine_id in self._live:
            raise ValueError(f"engine_id {request.engine_id!r} is in the engine already")
        remaining = request.max_new_tokens - len(request.emitted_ids)
        if remaining < 1:
            self._deliver(EngineOutputs((EngineOutput(request.engine_id, (), "length"),)))
            return
        prefill = [*request.prompt_ids, *request.emitted_ids]
        if not prefill or len(prefill) + remaining > self.capabilities.context_tokens:
            raise ValueError(
                f"{len(prefill)} + {remaining} tokens weren't admitted: {self.capabilities.context_tokens} fit"
            )
        model_end = frozenset[int]() if request.ignore_eos else self._loaded.eos_token_ids
        live = LiveRequest(request, model_end | set(request.sampling.stop_token_ids))
        self._live[request.engine_id] = live
        accepted = self._manager.add_request(
            prefill,
            request_id=request.engine_id,
            max_new_tokens=remaining,
            streaming=True,
            eos_token_id=sorted(live.end_ids) or _NO_EOS,
            live=live,
        )
        if accepted is None:
            self._live.pop(request.engine_id, None)
            raise self._die("it takes no more requests")
        if request.engine_id not in self._live:
            self._manager.cancel_request(request.engine_id)  # cancelled before the manager had it

    def cancel(self, engine_id: str) -> None:
        """Free the request's slot. The manager may still deliver a token of it, which is dropped."""
        if self._live.pop(engine_id, None) is not None:
            self._manager.cancel_request(engine_id)

    def _scores_prompt(self, engine_id: str) -> bool:
        live = self._live.get(engine_id)
        return live is not None and live.scores_prompt

    def _check_alive(self) -> None:
        if self._death is not None or not self._manager.is_running():
            raise self._die("its thread isn't running")

    def _receive(self, results: Sequence[GenerationOutput]) -> None:
        """Deliver a step's results, or the engine's death. Runs in the manager's thread."""
        failed = next((result for result in results if result.status == RequestStatus.FAILED), None)
        if failed is not None:
            # The manager reports a failed step or cache as a request's failure.
            self._die(failed.error or "a step failed")
        elif self._death is None:
            outputs = tuple(self._new_tokens(results))
            if outputs:
                self._deliver(EngineOutputs(outputs))

    def _new_tokens(self, results: Sequence[GenerationOutput]) -> Iterable[EngineOutput]:
        for result in results:
            live = self._live.get(result.request_id)
            if live is None:
                if not result.is_finished():
                    # The manager drains its additions before its cancellations: a cancellation that it drains without
                    # the addition is lost, and the request would occupy its slot up to its budget.
                    self._manager.cancel_request(result.request_id)
                continue
            token_ids = tuple(result.generated_tokens[live.delivered :])
            valid = _valid(result.logprobs[live.delivered :])
            if valid < len(token_ids):
                self.cancel(result.request_id)
                yield live.output(token_ids[:valid], None, _failure(live))
                continue
            if not result.is_finished():
                yield live.output(token_ids, None)
                continue
            self._live.pop(result.request_id, None)
            if token_ids and token_ids[-1] in live.end_ids:
                kept = len(token_ids) - (0 if live.keeps(token_ids[-1]) else 1)
                yield live.output(token_ids[:kept], "stop")
            else:
                yield live.output(token_ids, "length")

    def _die(self, reason: str) -> EngineError:
        """The engine's first cause of death; delivers it, unless the engine was stopped."""
        with self._dying:
            if self._death is None:
                self._death = EngineError(f"the engine died: {reason}")
                self._deliver(EngineDied(self._death))
            return self._death

    def _watch(self) -> None:
        """Deliver the engine's death when the manager's thread ends without failing a request."""
        thread = self._manager._generation_thread
        if thread is not None:
            thread.join()
            self._die("its thread ended")


def _valid(logprobs: Sequence[float]) -> int:
    """The number of tokens before the first one that was drawn from NaN, or without a finite score.

    This works in CUDA graphs and asynchronous batching, too: the token of such a row must be one of the
    vocabulary, since it may be the next step's input already, and its log-probability isn't a finite number.
    """
    return next((index for index, logprob in enumerate(logprobs) if not math.isfinite(logprob)), len(logprobs))


def _failure(live: LiveRequest) -> RequestFailure:
    """Why there was no token to draw."""
    if not live.dead_end:
        return INVALID_LOGITS
    return NO_TOKEN_LEFT if live.request.token_mask is None else GRAMMAR_DEAD_END


def _prompt_options(model: PreTrainedModel) -> frozenset[str]:
    return frozenset({"prompt_logprobs"} if can_score_prompts(model) else ())


def _layers(model: PreTrainedModel) -> Iterable[torch.nn.Module]:
    """The model's layers; the model itself where they aren't in a ModuleList."""
    number = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return next((layers for layers in lists if len(layers) == number), [model])


def _largest_request(cache: PagedAttentionCache, context_tokens: int) -> int:
    """The most tokens one request may hold when the cache is otherwise empty; the cache itself is asked, since what
    layers of sliding attention need isn't proportional to the length."""
    probe = RequestState(request_id="largest-request", initial_tokens=[])
    low, high = 0, context_tokens
    while low < high:
        middle = (low + high + 1) // 2
        fits = cache.can_store_request_tokens(probe, middle, dry_run=True)
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
