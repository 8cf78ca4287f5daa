"""The entry point of the command `tokenrelay`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command. Ctrl-C exits without a traceback, even during imports."""
    try:
        from tokenrelay.cli.commands import app

        app(prog_name="tokenrelay")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
