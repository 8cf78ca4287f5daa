"""A supervisor over scripted children, as a process of its own."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tokenrelay.shared.settings import WorkerSettings
from tokenrelay.worker.supervisor.supervisor import Supervisor

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    command = (sys.executable, "-I", "-S", str(Path(__file__).with_name("scripted_child.py")))
    sys.exit(Supervisor(WorkerSettings.from_environment(), command).run())
