"""The engine's process, started by the supervisor as `python -m tokenrelay.worker.supervisor.child`.

Takes up the tether before it imports or loads anything else, so that it ends with its supervisor at any time.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tokenrelay.worker.supervisor.pipes import Tether, report_regularly

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Work until it's stopped. An exception ends the process with an exit code of exits.py."""
    parser = argparse.ArgumentParser(prog="tokenrelay-worker child", description="Started by tokenrelay-worker run.")
    parser.add_argument("--report-fd", type=int, required=True)
    parser.add_argument("--tether-fd", type=int, required=True)
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("--stalls", type=int, default=0)
    given = parser.parse_args(arguments)
    tether = Tether(given.tether_fd)
    from tokenrelay.worker.supervisor.exits import hard_exit, log_to_stderr

    log_to_stderr()
    with hard_exit():
        _work(given, tether)


def _work(given: argparse.Namespace, tether: Tether) -> None:
    from tokenrelay.shared.settings import WorkerSettings
    from tokenrelay.worker.metrics import Restarts
    from tokenrelay.worker.worker import Worker

    settings = WorkerSettings.from_environment()
    worker = Worker(settings, restarts=Restarts(given.restarts, given.stalls))
    report_regularly(given.report_fd, worker.threads.progress, settings.heartbeat_ms / 1000)
    tether.hand_over(worker.hand_back)
    worker.handle_signals()
    worker.work()


if __name__ == "__main__":
    main()
