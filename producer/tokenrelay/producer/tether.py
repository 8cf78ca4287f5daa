"""Runs a command that may not outlive whoever started it: `python tether.py FOLDER COMMAND…`.

Its standard input is a pipe that the owner holds open. When the pipe closes, because the owner closed it, exited or was
killed, the command gets SIGTERM, after GRACE_S SIGKILL, and FOLDER is deleted. It ends with the command's exit status.
A pipe, because Linux's PR_SET_PDEATHSIG has no counterpart on macOS. It doesn't know what it runs, and imports nothing
but the standard library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading

GRACE_S = 10.0


def run(folder: str, command: list[str]) -> int:
    """The command's exit status, once it has ended."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    released = threading.Event()
    threading.Thread(target=_end_with_owner, args=(child, released), daemon=True).start()
    status = child.wait()
    if released.is_set():  # else the owner lives, and wants to read the log
        shutil.rmtree(folder, ignore_errors=True)
    return status


def _end_with_owner(child: subprocess.Popen[bytes], released: threading.Event) -> None:
    # os.read, not sys.stdin: at exit the interpreter would wait for the lock of a reader that is blocked.
    while os.read(0, 4096):
        pass
    released.set()
    child.terminate()
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
