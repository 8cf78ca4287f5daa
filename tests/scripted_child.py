"""A child for supervisor tests, controlled by variables: standard library only, so it starts fast.

SCRIPTED_LOG: a file that each start adds a line to: when, process ID, worker name, device.
SCRIPTED_END: an exit code; `never`, which also ignores SIGTERM; `unready CODE` ends before its first report; `odd`
sends a report that can't be read, and stays.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    report_fd = int(sys.argv[sys.argv.index("--report-fd") + 1])
    end = os.environ["SCRIPTED_END"]
    if end == "never":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with Path(os.environ["SCRIPTED_LOG"]).open("a") as log:
        name, device = os.environ["TOKENRELAY_WORKER_NAME"], os.environ["TOKENRELAY_DEVICE"]
        log.write(f"{time.monotonic()} {os.getpid()} {name} {device}\n")
    if end.startswith("unready "):
        return int(end.split()[1])
    steps = 0
    if end == "odd":
        os.write(report_fd, b"1 2\n\xff what?\n")
        time.sleep(300)
    while True:
        os.write(report_fd, f"1 {steps}\n".encode())  # in flight, and the engine moves: not a hang
        if end != "never":
            return int(end)
        steps += 1
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
