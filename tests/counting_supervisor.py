"""A supervisor over counting children, as a process of its own that tests may kill."""

from __future__ import annotations

import logging
import sys

from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.worker.supervisor.supervisor import Supervisor

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sys.exit(Supervisor(WorkerSettings.from_environment(), (sys.executable, "-m", "tests.counting_child")).run())
