"""Producers and consumers: submit prompts, follow streams, assemble answers. Nothing here imports torch."""

from tokenrelay.producer._core.endings import Status
from tokenrelay.producer._core.prompts import PromptToken
from tokenrelay.producer.aio import AsyncConsumer, AsyncGeneration, AsyncProducer, AsyncReadOnlyGeneration
from tokenrelay.producer.client import Consumer, Producer
from tokenrelay.producer.generation import Generation, NoWorkerWarning, ReadOnlyGeneration
from tokenrelay.shared.answers.deltas import (
    AssistantMessage,
    CallArguments,
    CallBegin,
    CallEnd,
    Content,
    Delta,
    Reasoning,
    ToolCall,
)
from tokenrelay.shared.chat import Message
from tokenrelay.shared.errors import (
    GenerationCancelled,
    GenerationError,
    GenerationExpired,
    GenerationFailed,
    IdempotencyConflict,
    ProtocolError,
    QueueFull,
    RedisUnusable,
    RequestError,
    RequestNotFound,
    SettingsError,
    StreamChanged,
    StreamError,
    StreamExpired,
    StreamGap,
    StreamTimeout,
    TokenRelayError,
    WrongEventLoop,
)
from tokenrelay.shared.options import Options, Submission
from tokenrelay.shared.settings import ProducerSettings
from tokenrelay.shared.wire.answer import Answer, Timings
from tokenrelay.shared.wire.entries import Ended, Entry, EntryId, Event, Migrated, Queued, Started, State, Token, Usage

__all__ = [
    "Answer",
    "AssistantMessage",
    "AsyncConsumer",
    "AsyncGeneration",
    "AsyncProducer",
    "AsyncReadOnlyGeneration",
    "CallArguments",
    "CallBegin",
    "CallEnd",
    "Consumer",
    "Content",
    "Delta",
    "Ended",
    "Entry",
    "EntryId",
    "Event",
    "Generation",
    "GenerationCancelled",
    "GenerationError",
    "GenerationExpired",
    "GenerationFailed",
    "IdempotencyConflict",
    "Message",
    "Migrated",
    "NoWorkerWarning",
    "Options",
    "Producer",
    "ProducerSettings",
    "PromptToken",
    "ProtocolError",
    "Queued",
    "QueueFull",
    "Reasoning",
    "ReadOnlyGeneration",
    "RedisUnusable",
    "RequestError",
    "RequestNotFound",
    "SettingsError",
    "Started",
    "State",
    "Status",
    "StreamChanged",
    "StreamError",
    "StreamExpired",
    "StreamGap",
    "StreamTimeout",
    "Submission",
    "Timings",
    "Token",
    "TokenRelayError",
    "ToolCall",
    "Usage",
    "WrongEventLoop",
]
