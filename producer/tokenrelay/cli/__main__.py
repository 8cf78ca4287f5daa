"""The entry point of the command `tokenrelay`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command that was given. Ctrl-C is no traceback, not even while modules are loaded."""
    try:
        from tokenrelay.cli.commands import app

        app(prog_name="tokenrelay")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
