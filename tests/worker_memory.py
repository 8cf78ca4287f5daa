"""A worker's memory over many short requests: `python -m tests.worker_memory --requests 30000 [--model]`.

Prints the resident size as it goes, and what is left once the allocator has given back what it keeps (malloc_trim,
glibc). The engine is the counting one, or with `--model` the bundled model's.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import sys
import tempfile
import threading
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import SecretStr

from tests.engines import CountingEngine
from tests.redis_servers import RedisServer
from tests.waiting import wait_until
from tests.workers import VOCABULARY, served, submit
from tokenrelay.shared.redis.batches import Pipeline
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.worker.serving.model import serve
from tokenrelay.worker.worker import Worker

WAVE = 250


def measure(worker: Worker, pipeline: Pipeline, requests: int, model: str) -> None:
    process = psutil.Process()
    for done in range(WAVE, requests + 1, WAVE):
        for _ in range(WAVE):
            submit(pipeline, datetime.now(UTC), f"What is the weather in w{done}?", model=model, max_new_tokens=4)
        wait_until(lambda done=done: worker.threads.status.finished >= done, 300)  # type: ignore[misc]
        if done % (requests // 10) < WAVE:
            sys.stdout.write(f"{done} requests: {process.memory_info().rss >> 20} MiB\n")
            sys.stdout.flush()
    ctypes.CDLL(None).malloc_trim(0)
    sys.stdout.write(f"after malloc_trim: {process.memory_info().rss >> 20} MiB\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=30_000)
    parser.add_argument("--model", action="store_true", help="the bundled model instead of the counting engine")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        try:
            settings = WorkerSettings(redis_url=SecretStr(server.url))
            counting = CountingEngine(vocabulary=VOCABULARY, slots=32)
            serving = serve(settings) if arguments.model else served(counting)
            worker = Worker(settings, serving)
            thread = threading.Thread(target=worker.work, name="worker")
            thread.start()
            with server.client() as redis:
                measure(worker, Pipeline(redis), arguments.requests, serving.reader.served_model)
            worker.stop()
            thread.join()
        finally:
            server.kill()


if __name__ == "__main__":
    main()
