"""Which of Redis's refusals end a request: those that its own keys are the reason of, and no others."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError, OutOfMemoryError, ResponseError

from tokenrelay.shared.redis.calls import is_unusable

SCRIPT = "script: 5c9f, on @user_script:12."


@pytest.mark.parametrize(
    "told",
    [
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        f"WRONGTYPE Operation against a key holding the wrong kind of value {SCRIPT}",
        "Error running script (call to f_5c9f): @user_script:12: WRONGTYPE Operation against a key",
        f"The ID specified in XADD is equal or smaller than the target stream top item {SCRIPT}",
        "user_script:12: attempt to compare number with nil script: 5c9f, on @user_script:12.",
    ],
)
def test_what_the_keys_are_ends_it(told: str) -> None:
    assert is_unusable(ResponseError(told))


@pytest.mark.parametrize(
    "error",
    [
        ResponseError(f"Error running script: Script killed by user with SCRIPT KILL. {SCRIPT}"),
        ResponseError(f"OOM command not allowed when used memory > 'maxmemory'. {SCRIPT}"),
        ResponseError("MISCONF Redis is configured to save RDB snapshots"),
        ResponseError("upstream failure"),
        ResponseError("no upstream host"),
        ResponseError("unknown command 'EVALSHA'"),
        ResponseError("internal error"),
        OutOfMemoryError("command not allowed"),
        ConnectionError("Connection refused"),
        [b"LOST"],
        None,
    ],
    ids=str,
)
def test_what_the_server_or_a_proxy_says_passes(error: object) -> None:
    assert not is_unusable(error)
