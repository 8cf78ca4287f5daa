"""An engine child's place in the process table, while the child itself is forked by the nursery (see nursery.py).

Run by the supervisor as its child command. It hands its environment and pipes over, lives as long as the forked
process, and ends with its exit code. Signals that the supervisor sends it are passed on; killed, it takes the forked
process with it. Imports the standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys


def main() -> int:
    report_fd, tether_fd = int(sys.argv[2]), int(sys.argv[4])
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as nursery:
        nursery.connect(os.environ["NURSERY"])
        socket.send_fds(nursery, [json.dumps(dict(os.environ)).encode() + b"\n"], [report_fd, tether_fd, 2])
        # The pipes' ends must be the forked process's alone: their closing is how its death is noticed.
        os.close(report_fd)
        os.close(tether_fd)
        lines = nursery.makefile()
        child = int(lines.readline())
        signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
        return int(lines.readline() or 1)


if __name__ == "__main__":
    code = main()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if code != -signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    sys.exit(code)
