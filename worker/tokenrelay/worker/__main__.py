"""`tokenrelay-worker`: run a worker, train the bundled model. The one place where logging and settings are set up."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tokenrelay.shared.errors import TokenRelayError
from tokenrelay.shared.redis.servers import Urls, check_fit, connected
from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.worker.supervisor.exits import hard_exit, log_to_stderr, report
from tokenrelay.worker.supervisor.supervisor import Supervisor
from tokenrelay.worker.training.command import train_command

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
    _check_redis(settings.urls)
    if burst:
        _burst(settings)
    else:
        sys.exit(Supervisor(settings).run())


app.command(name="train")(train_command)


def _burst(settings: WorkerSettings) -> None:
    from tokenrelay.worker.worker import Worker

    with hard_exit():
        worker = Worker(settings)
        worker.handle_signals()
        worker.work(burst=True)


def _check_redis(urls: Urls) -> None:
    """Before minutes of loading: is there a Redis that can be used?"""
    import redis

    with connected(urls) as servers:
        for plane in servers.planes:
            try:
                check_fit(plane, servers.client(plane).info())
            except redis.RedisError as error:
                raise servers.explain(error, plane) from error


def main() -> None:
    """The entry point: errors that tell the user something are one line on stderr, never a traceback.

    Exit codes: 0 stopped, 1 the engine or the model failed, 2 bad settings, 3 Redis unusable.
    """
    log_to_stderr()
    try:
        app()
    except TokenRelayError as error:
        sys.exit(report(error))


if __name__ == "__main__":
    main()
