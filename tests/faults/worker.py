"""A supervisor whose children are forked by the nursery; all else is `tokenrelay-worker run`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.worker.supervisor.supervisor import Supervisor

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    command = (sys.executable, "-I", "-S", str(Path(__file__).with_name("stub.py")))
    sys.exit(Supervisor(WorkerSettings.from_environment(), command).run())
