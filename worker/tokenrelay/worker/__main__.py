"""`tokenrelay-worker`: run a worker, train the bundled model. The one place where logging and settings are set up."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tokenrelay.shared.connections import address, check_fit, connect, explain
from tokenrelay.shared.errors import EngineError, RedisUnusable, TokenRelayError
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.worker.metrics import Restarts
from tokenrelay.worker.reports import on_supervisor_death, report_regularly
from tokenrelay.worker.supervisor import Supervisor
from tokenrelay.worker.training.command import train_command

if TYPE_CHECKING:
    from tokenrelay.worker.generation_worker import GenerationWorker

app = typer.Typer(
    help="tokenrelay's worker.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def worker() -> None:
    """tokenrelay's worker."""


@app.command()
def run(
    model: Annotated[str | None, typer.Option(help="Model folder or Hub name; the bundled one if not given.")] = None,
    served_model: Annotated[str | None, typer.Option(help="The name that requests ask for.")] = None,
    name: Annotated[str | None, typer.Option(help="Unique name of this worker; drawn if not given.")] = None,
    slots: Annotated[int | None, typer.Option(help="Requests generated at the same time.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float16, bfloat16, float32 or float64.")] = None,
    kv_cache_tokens: Annotated[int | None, typer.Option(help="Tokens that the KV cache holds.")] = None,
    burst: Annotated[bool, typer.Option("--burst", help="Stop when the queues are empty.")] = False,
) -> None:
    """Claim requests, generate, publish every token.

    All settings, Redis among them, are also TOKENRELAY_ environment variables: see docs/settings.md.
    """
    settings = WorkerSettings.from_environment(
        model_path=model,
        served_model=served_model,
        worker_name=name,
        slots=slots,
        device=device,
        dtype=dtype,
        kv_cache_tokens=kv_cache_tokens,
    )
    _check_redis(settings.redis_url.get_secret_value())
    if burst:
        _worker(settings).work(burst=True, logging_level=None)
    else:
        sys.exit(Supervisor(settings).run())


@app.command(hidden=True)
def child(
    report_fd: Annotated[int, typer.Option()],
    tether_fd: Annotated[int, typer.Option()],
    restarts: Annotated[int, typer.Option()] = 0,
    stalls: Annotated[int, typer.Option()] = 0,
) -> None:
    """The engine's process, started by `run`."""
    try:
        worker = _worker(WorkerSettings.from_environment(), Restarts(restarts, stalls))
        report_regularly(report_fd, worker.loop.progress, worker.settings.heartbeat_ms / 1000)
        on_supervisor_death(tether_fd, worker.loop.hand_back_now)
        worker.work(logging_level=None)
    except EngineError as error:
        sys.stderr.write(f"tokenrelay-worker: {error}\n")
        logging.shutdown()
        os._exit(_exit_code(error))  # a dead engine may have left a thread that never ends


app.command(name="train")(train_command)


def _worker(settings: WorkerSettings, restarts: Restarts | None = None) -> GenerationWorker:
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.WARNING)
    from tokenrelay.worker.generation_worker import GenerationWorker

    return GenerationWorker(settings=settings, restarts=restarts)


def _check_redis(url: str) -> None:
    """Before minutes of loading: is there a Redis that can be used?"""
    import redis

    client = connect(url)
    try:
        check_fit(client.info())
    except redis.RedisError as error:
        raise explain(error, address(client)) from error
    finally:
        client.close()


def main() -> None:
    """The entry point: errors that tell the user something are one line on stderr, never a traceback.

    Exit codes: 0 stopped as told, 1 the engine or the model failed, 2 bad settings, 3 Redis unusable.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        app()
    except TokenRelayError as error:
        sys.stderr.write(f"tokenrelay-worker: {error}\n")
        sys.exit(_exit_code(error))


def _exit_code(error: TokenRelayError) -> int:
    if isinstance(error, RedisUnusable):
        return 3
    return 1 if isinstance(error, EngineError) else 2


if __name__ == "__main__":
    main()
