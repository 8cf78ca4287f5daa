"""A Redis that isn't fit is told in one line that says what to do."""

from __future__ import annotations

import re
from importlib import metadata
from typing import TYPE_CHECKING

import pytest
import redis as redis_py
from redis.exceptions import RedisError

from tests.waiting import wait_until
from tokenrelay.shared.errors import RedisUnusable
from tokenrelay.shared.redis import connections
from tokenrelay.shared.redis.connections import address, check_fit, connect, explain

if TYPE_CHECKING:
    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer


def told(client: Redis) -> str:
    """What `explain` makes of the client's first write."""
    with pytest.raises(RedisError) as caught:
        client.set("x", 1, ex=60)
    message = explain(caught.value, address(client)).message
    assert "\n" not in message
    return message


def test_a_fit_server_passes(redis: Redis) -> None:
    check_fit(redis.info())


def test_nobody_listens() -> None:
    with connect("redis://127.0.0.1:1/0", retries=0) as client:
        message = told(client)
    assert message.startswith("Redis at 127.0.0.1:1: ")
    assert message.endswith("is it running there? start it, or set TOKENRELAY_REDIS_URL")


@pytest.mark.parametrize("password", ["", ":wrong-one@"])
def test_a_wrong_or_missing_password(make_redis_server: MakeRedisServer, password: str) -> None:
    server = make_redis_server(password="right-one")
    with connect(f"redis://{password}127.0.0.1:{server.port}/0") as client:
        message = told(client)
    assert "check user and password in TOKENRELAY_REDIS_URL" in message
    assert "one@" not in message


def test_a_read_only_replica(make_redis_server: MakeRedisServer) -> None:
    primary = make_redis_server("--repl-diskless-sync-delay", "0")
    replica = make_redis_server("--replicaof", "127.0.0.1", str(primary.port))
    with replica.client() as client:
        wait_until(lambda: client.info("replication")["master_link_status"] == "up")
        assert "give the URL of its primary" in told(client)
        with pytest.raises(RedisUnusable, match="read-only replica; give the URL of its primary"):
            check_fit(client.info())


def test_an_evicting_policy(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server("--maxmemory-policy", "allkeys-lru")
    with server.client() as client, pytest.raises(RedisUnusable, match="CONFIG SET maxmemory-policy noeviction"):
        check_fit(client.info())


def test_a_full_server(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server("--maxmemory", "1")
    with server.client() as client:
        assert "raise maxmemory" in told(client)


@pytest.mark.parametrize("version", ["6.0.16", "5.0.14", "3.2"])
def test_an_old_version(redis: Redis, version: str) -> None:
    with pytest.raises(RedisUnusable, match=f"version {version}; tokenrelay needs 6.2"):
        check_fit({**redis.info(), "redis_version": version})


@pytest.mark.parametrize("version", ["6.2.0", "7.0.15", "8.2.1", "10.0.0"])
def test_a_new_version(redis: Redis, version: str) -> None:
    check_fit({**redis.info(), "redis_version": version})


@pytest.mark.skipif(not hasattr(redis_py, "DriverInfo"), reason="this redis-py reads its version once")
def test_connections_show_who_they_are_and_read_no_package_files_for_it(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(redis_server.url) as first:
        assert first.ping()
        driver = first.connection_pool.connection_kwargs["driver_info"]
        assert re.fullmatch(r"redis-py\(tokenrelay_v[0-9.]+\)", driver.formatted_name)
    monkeypatch.setattr("redis.utils.get_lib_version", lambda: pytest.fail("read again"))
    with connect(redis_server.url) as second:
        assert second.ping()


@pytest.mark.skipif(not hasattr(redis_py, "DriverInfo"), reason="this redis-py is told no version")
def test_a_source_folder_has_no_version_to_show(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    connections._driver_info.cache_clear()
    try:
        with connect(redis_server.url) as client:
            assert client.ping()
    finally:
        connections._driver_info.cache_clear()
