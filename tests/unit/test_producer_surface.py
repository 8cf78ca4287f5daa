"""What `tokenrelay.producer` gives, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

from tokenrelay import producer

SURFACE = """
Answer AsyncConsumer AsyncGeneration AsyncProducer AsyncReadOnlyGeneration Consumer Ended Entry EntryId Event Generation
GenerationCancelled GenerationError GenerationExpired GenerationFailed IdempotencyConflict Message Migrated
NoWorkerWarning Options Producer ProducerSettings PromptToken ProtocolError QueueFull Queued ReadOnlyGeneration
RedisUnusable RequestError RequestNotFound SettingsError Started State Status StreamChanged StreamError StreamExpired
StreamGap StreamTimeout Submission Timings Token TokenRelayError Usage WrongEventLoop
AssistantMessage CallArguments CallBegin CallEnd Content Delta Reasoning ToolCall
""".split()


def test_the_surface_is_this_and_no_more() -> None:
    assert sorted(producer.__all__) == sorted(SURFACE)
    assert all(hasattr(producer, name) for name in SURFACE)


def test_async_classes_mirror_the_sync_ones() -> None:
    def public(cls: type) -> set[str]:
        return {name for name in dir(cls) if not name.startswith("_")}

    assert public(producer.AsyncGeneration) == public(producer.Generation)
    assert public(producer.AsyncReadOnlyGeneration) == public(producer.ReadOnlyGeneration)
    assert public(producer.AsyncProducer) - {"aclose"} == public(producer.Producer) - {"close"}
    assert public(producer.AsyncConsumer) - {"aclose"} == public(producer.Consumer) - {"close"}


def test_a_consumers_handle_has_no_cancel() -> None:
    assert not hasattr(producer.ReadOnlyGeneration, "cancel")
    assert not hasattr(producer.AsyncReadOnlyGeneration, "cancel")


def test_importing_it_leaves_torch_out() -> None:
    code = "import sys, tokenrelay.producer; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
