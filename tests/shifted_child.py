"""A worker over the counting engine in a process whose clock is wrong: `python -m tests.shifted_child SECONDS_AHEAD`.

The standard library's clocks are shifted before anything else is imported, as a host's own would be.
"""

from __future__ import annotations

import datetime
import sys
import time

_real_time = time.time
_ahead_s = float(sys.argv[1])


class _Shifted(datetime.datetime):
    """datetime, by the wrong clock."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _Shifted:
        return cls.fromtimestamp(_real_time() + _ahead_s, tz)


if __name__ == "__main__":
    time.time = lambda: _real_time() + _ahead_s
    datetime.datetime = _Shifted  # type: ignore[misc]
    from tests.fleet import run_worker

    run_worker()
