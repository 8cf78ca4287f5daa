"""Error messages for an unusable Redis, each from its real cause."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
from redis.exceptions import RedisError

from tests.redis_servers import free_port
from tests.waiting import wait_until
from tokenrelay.producer import Producer
from tokenrelay.shared.errors import RedisUnusable, SettingsError
from tokenrelay.shared.redis.connections import address, check_fit, connect, connect_async, explain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from redis import Redis

    from tests.conftest import MakeRedisServer
    from tests.redis_servers import RedisServer

_IN_SCRIPT: Final = b"-ERR Error running script (call to f_915a6a): @user_script:87: @user_script: 87: %s \r\n"
"""Redis 6.2's error for a script that was stopped midway."""


def told(client: Redis, write: Callable[[Redis], Any] = lambda client: client.set("x", 1, ex=60)) -> str:
    """The error that `explain` returns for the client's first write."""
    with client, pytest.raises(RedisError) as caught:
        write(client)
    message = explain(caught.value, address(client)).message
    assert "\n" not in message
    assert len(message) < 500
    assert "user_script" not in message
    return message


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """The URL of a server that gives this reply to whatever it's sent; it hangs up where it has none, or denies."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    while connection.recv(1000) and reply:
                        connection.sendall(reply)
                        if reply.startswith(b"-DENIED"):
                            break

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_full_pool(redis_server: RedisServer) -> None:
    client = connect(f"{redis_server.url}?max_connections=1", retries=0)
    held = client.connection_pool.get_connection()
    assert "this client's own pool is full: raise its max_connections" in told(client)
    client.connection_pool.release(held)


@pytest.mark.anyio
async def test_a_full_pool_on_asyncio(redis_server: RedisServer) -> None:
    async with connect_async(f"{redis_server.url}?max_connections=1", retries=0) as client:
        held = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        with pytest.raises(RedisError) as caught:
            await client.set("x", 1, ex=60)
        await client.connection_pool.release(held)
    assert "own pool is full" in explain(caught.value, "").message


def test_a_host_that_dns_does_not_know() -> None:
    assert "check its name in TOKENRELAY_REDIS_URL, and the DNS" in told(connect("redis://nowhere.invalid", retries=0))


def test_tls_to_a_port_without_it(redis_server: RedisServer) -> None:
    url = redis_server.url.replace("redis://", "rediss://")
    assert "both sides speak TLS (rediss://) or none" in told(connect(url, retries=0, timeout_s=0.5))


def test_more_clients_than_the_server_takes(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server()
    with server.client() as holder:
        holder.config_set("maxclients", 1)
        assert "raise maxclients there" in told(connect(server.url, retries=0))
        holder.config_set("maxclients", 100)


def test_a_stopped_server(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server()
    with connect(server.url, retries=0, timeout_s=0.3) as client:
        assert client.ping()
        os.kill(server.pid, signal.SIGSTOP)
        try:
            message = told(client)
        finally:
            os.kill(server.pid, signal.SIGCONT)
    assert "takes connections but doesn't answer in time" in message


def test_a_database_that_is_not_there(redis_server: RedisServer) -> None:
    assert "check the database's number" in told(connect(redis_server.url.replace("/0", "/99"), retries=0))


def test_a_socket_that_is_not_there(tmp_path: Path) -> None:
    assert "is it running there?" in told(connect(f"unix://{tmp_path}/redis.sock", retries=0))


def test_a_write_that_too_few_replicas_would_see(make_redis_server: MakeRedisServer) -> None:
    assert "see min-replicas-to-write there" in told(make_redis_server("--min-replicas-to-write", "1").client())


def test_a_disk_that_cannot_be_written(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server()
    with server.client() as client:
        client.config_set("save", "1000 1")
        shutil.rmtree(server.folder)
        client.bgsave()
        wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        assert "can't write to its disk" in told(server.client())
        server.folder.mkdir()
        client.config_set("stop-writes-on-bgsave-error", "no")


def test_a_script_that_blocks_it(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server("--lua-time-limit", "1")
    with server.client() as killer, connect(server.url, retries=0) as other:

        def script() -> None:
            with pytest.raises(RedisError):
                other.eval("while true do end", 0)

        running = threading.Thread(target=script)
        running.start()
        messages = []

        def refused() -> bool:
            try:
                killer.set("x", 1, ex=60)
            except RedisError as error:
                messages.append(explain(error, "").message)
            return bool(messages)

        wait_until(refused)
        killer.script_kill()
        running.join()
    assert "SCRIPT KILL" in messages[0]


@pytest.mark.parametrize(
    ("reply", "advice"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "isn't Redis: check host and port"),
        (b"", "it hung up: it was stopped, speaks TLS (rediss://)"),
        (b"-DENIED Redis is running in protected mode because protected mode is enabled and no password is set. " * 9
         + b"\r\n", "protected mode"),
        (_IN_SCRIPT % b"-OOM command not allowed when used memory > 'maxmemory'.", "Redis is full: raise maxmemory"),
        (_IN_SCRIPT % b"-READONLY You can't write against a read only replica.", "give the URL of its primary"),
        (_IN_SCRIPT % b"-NOPERM this user has no permissions to run 'xadd'", "this Redis user lacks a right"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "try again in a moment"),
        (b"-MOVED 3999 127.0.0.1:6381\r\n", "Redis Cluster isn't supported"),
    ],
    ids=["not Redis", "hangs up", "protected mode", "full", "replica", "rights", "loading", "cluster"],
)  # fmt: skip
def test_what_else_may_answer(reply: bytes, advice: str) -> None:
    with answering(reply) as url:
        assert advice in told(connect(url, retries=0))


def test_a_cluster_is_refused_and_told_what_to_use(make_redis_server: MakeRedisServer) -> None:
    server = make_redis_server("--cluster-enabled", "yes")
    supported = r"isn't supported for the queue; use one Redis without cluster mode.*redis\+sentinel://"
    with pytest.raises(RedisUnusable, match=supported), Producer(server.url) as producer:
        producer.submit("x")
    with server.client() as client:
        with pytest.raises(RedisUnusable, match=supported):
            check_fit(client.info())
        assert "isn't supported" in told(server.client())  # no slot is served yet
        client.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
        wait_until(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
        assert "isn't supported" in told(server.client(), lambda client: client.mset({"a": 1, "b": 1}))


@pytest.mark.parametrize("scheme", ["redis+cluster", "rediss+cluster", "redis-cluster"])
def test_a_clusters_url_is_refused_and_told_what_to_use(scheme: str) -> None:
    with pytest.raises(SettingsError, match=r"Redis Cluster isn't supported for the queue.*redis\+sentinel://"):
        Producer(f"{scheme}://:secret@127.0.0.1:6379/0")


def test_a_sentinel_is_no_redis(redis_server: RedisServer, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "sentinel.conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n")
    command = [redis_server.binary, str(tmp_path / "sentinel.conf"), "--sentinel"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        with connect(f"redis://127.0.0.1:{port}/0", retries=0) as client:
            wait_until(lambda: _answers(client))
            with pytest.raises(RedisUnusable, match=r"this is a Sentinel; give a URL such as redis\+sentinel://"):
                check_fit(client.info())
            assert "not a Sentinel (redis+sentinel://)" in told(connect(f"redis://127.0.0.1:{port}/0", retries=0))
        assert "check the service's name" in told(connect(f"redis+sentinel://127.0.0.1:{port}/nobody/0", retries=0))
    finally:
        process.kill()
        process.wait(60)


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False
