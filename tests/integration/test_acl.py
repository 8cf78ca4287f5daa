"""The Redis users of deploy/users.acl: each has its role's permissions and no others."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError
from rq import Queue
from rq import Worker as RqWorker
from rq.job import Job
from rq.serializers import JSONSerializer
from typer.testing import CliRunner

from tests.engines import CountingEngine
from tests.redis_servers import RedisServer, skip_before_redis_7
from tests.waiting import wait_until
from tests.workers import MODEL, VOCABULARY, running_worker
from tokenrelay.cli.commands import app
from tokenrelay.producer import Consumer, Producer
from tokenrelay.shared.metrics import queue_depths
from tokenrelay.shared.metrics.queue_depths import QueueDepths
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.redis.servers import Urls
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redis import Redis
    from typer.testing import Result

    from tests.conftest import MakeRedisServer
    from tokenrelay.producer import Options

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
ROLES: Final = ("producer", "worker", "consumer", "dashboard", "operator")
QUEUE: Final = keys.queue(MODEL, "default")
ID: Final = "A" * 22


def rendered(folder: Path, **passwords: str) -> str:
    """The ACL file created by deploy/credentials.sh."""
    script = ["sh", str(DEPLOY / "credentials.sh"), str(DEPLOY / "users.acl"), str(folder)]
    subprocess.run(script, check=True, env={"PATH": os.environ["PATH"], **passwords})
    return (folder / "acl" / "users.acl").read_text("utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("credentials")
    rendered(folder)
    return folder


@pytest.fixture
def server(make_redis_server: MakeRedisServer, folder: Path) -> RedisServer:
    """A server with these users. Its default user stays on: the check for leaked keys is made as it."""
    server = make_redis_server()
    with server.client() as client:
        skip_before_redis_7(client, "a user has no selectors such as %R~")
        for line in (folder / "acl" / "users.acl").read_text("utf-8").splitlines():
            _, name, *rules = line.split()
            if name != "default":
                client.execute_command("ACL", "SETUSER", name, *rules)
    return server


@pytest.fixture
def url_of(server: RedisServer, folder: Path) -> Callable[[str], str]:
    return lambda role: role_url(server, folder, role)


def role_url(server: RedisServer, folder: Path, role: str) -> str:
    password = (folder / role / "password").read_text("utf-8")
    return f"redis://{role}:{password}@127.0.0.1:{server.port}/0"


@pytest.fixture
def as_role(url_of: Callable[[str], str]) -> Iterator[Callable[[str], Redis]]:
    clients: list[Redis] = []

    def client(role: str) -> Redis:
        clients.append(connect(url_of(role)))
        return clients[-1]

    yield client
    for one in clients:
        one.close()


def denied(server: RedisServer) -> list[str]:
    """Refused commands since the server started: user, command, reason."""
    with server.client() as client:
        log = client.execute_command("ACL", "LOG")
    found = []
    for entry in log:
        pairs = entry if isinstance(entry, dict) else dict(zip(entry[::2], entry[1::2], strict=True))
        found.append(b" ".join(pairs[name] for name in (b"username", b"reason", b"context", b"object")).decode())
    return found


def test_every_role_does_its_work_without_a_refusal(server: RedisServer, url_of: Callable[[str], str]) -> None:
    engine = CountingEngine(vocabulary=VOCABULARY, step_delay_s=0.01, slots=4)
    with (
        running_worker(url_of("worker"), engine, slots=4) as worker,
        Producer(url_of("producer")) as producer,
        Consumer(url_of("consumer")) as consumer,
    ):
        chosen: Options = {"model": MODEL, "seed": 7, "max_new_tokens": 30}
        generation = producer.submit("w1 w2", **chosen)
        assert len(list(consumer.get(generation.request_id).tokens())) == 30
        assert generation.result().usage.completion_tokens == 30
        assert consumer.get(generation.request_id).status().state is State.INCOMPLETE

        once = [producer.submit("w1", **chosen | {"idempotency_key": "k"}).request_id for _ in range(2)]
        assert once[0] == once[1]
        assert len(producer.submit_many(["w1", "w2"], **chosen)) == 2

        running = producer.submit("w1", **chosen | {"max_new_tokens": 5000})
        wait_until(lambda: running.status().tokens >= 3)
        assert running.cancel()
        wait_until(lambda: not worker.threads.status.held)
        for role in ("worker", "gateway"):
            looked = list(QueueDepths(Urls(url_of(role), url_of(role)), MODEL).families())
            assert len(looked) == len(queue_depths.METRICS), f"{role}: no queue depths in its metrics"
    with Producer(url_of("producer")) as producer:
        assert producer.submit("w1", **chosen).cancel()  # queued, and no worker: the producer closes it in RQ
        overdue = producer.submit("w1", **chosen | {"deadline_s": 0.05})
        wait_until(lambda: overdue.status().seconds_left < 0)
        assert [entry.entry_id.token for entry in overdue.entries()] == [0, 0]
    # INFO is refused to producers, who then leave the check of the server to its workers.
    assert [line for line in denied(server) if line != "producer command toplevel info"] == []


def test_the_dashboard_sees_queues_jobs_and_workers(server: RedisServer, as_role: Callable[[str], Redis]) -> None:
    dashboard = as_role("dashboard")
    with server.client() as admin, running_worker(server.url), Producer(server.url) as producer:
        generation = producer.submit("w1", model=MODEL, max_new_tokens=3)
        generation.result()
        job_key = keys.rq_job(generation.request_id)
        wait_until(lambda: admin.hget(job_key, "status") == b"finished")
        assert QUEUE in [queue.name for queue in Queue.all(connection=dashboard, serializer=JSONSerializer)]
        job = Job.fetch(generation.request_id, connection=dashboard, serializer=JSONSerializer)
        assert (job.get_status(), job.func_name) == ("finished", keys.JOB_FUNCTION)
        assert job.latest_result()
        assert [worker.queue_names() for worker in RqWorker.all(connection=dashboard, serializer=JSONSerializer)]
        with pytest.raises(NoPermissionError):
            job.delete()
        with pytest.raises(NoPermissionError):
            dashboard.hget(keys.request(generation.request_id), "request")
        with pytest.raises(NoPermissionError):
            dashboard.xrange(keys.stream(generation.request_id))


def shown(monkeypatch: pytest.MonkeyPatch, url: str, *arguments: str) -> Result:
    monkeypatch.setenv("TOKENRELAY_REDIS_URL", url)
    return CliRunner().invoke(app, arguments)


def test_the_operator_sees_everything(
    server: RedisServer, url_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_worker(url_of("worker")), Producer(url_of("producer")) as producer:
        done, waiting = producer.submit("w1", model=MODEL, max_new_tokens=3), producer.submit("x", model="nobodys")
        done.result()
        for command, told in (
            (["top"], done.request_id),
            (["list"], waiting.request_id),
            (["status"], "no live worker serves the model 'nobodys'"),
            (["status", waiting.request_id], "no live worker serves its model 'nobodys'"),
            (["trace", done.request_id], "Prediction trace"),
        ):
            result = shown(monkeypatch, url_of("operator"), *command)
            assert (result.exit_code, told in " ".join(result.output.split())) == (0, True), result.output
        waiting.cancel()
    assert [line for line in denied(server) if line.startswith("operator")] == []


def test_others_see_what_they_may(
    server: RedisServer, url_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_worker(url_of("worker")), Producer(url_of("producer")) as producer:
        generation = producer.submit("w1", model=MODEL, max_new_tokens=3)
        generation.result()
        top = shown(monkeypatch, url_of("dashboard"), "top")
        assert (top.exit_code, QUEUE in top.output) == (0, True), top.output
        assert "This Redis user may not read requests" in top.output
        status = shown(monkeypatch, url_of("producer"), "status")
        assert (status.exit_code, QUEUE in status.output) == (0, True), status.output
        assert "this Redis user may not read" in status.output
        of_one = shown(monkeypatch, url_of("consumer"), "status", generation.request_id)
        assert (of_one.exit_code, "incomplete" in of_one.output) == (0, True), of_one.output
        load = ("load", "--rate", "20", "--duration", "0.3", "--seed", "1", "--model", MODEL)
        loaded = shown(monkeypatch, url_of("producer"), *load)
        assert (loaded.exit_code, "incomplete" in loaded.output) == (0, True), loaded.output
        for role, command in (("consumer", "top"), ("producer", "list"), ("dashboard", "list")):
            refused = shown(monkeypatch, url_of(role), command)
            assert (refused.exit_code, refused.stdout) == (3, ""), refused.output
            assert "this Redis user lacks a right" in refused.stderr


REQUEST, STREAM, JOB = keys.request(ID), keys.stream(ID), keys.rq_job(ID)
EVERYBODY: Final = (
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("CONFIG", "GET", "*"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("SHUTDOWN",),
    ("MONITOR",),
    ("ACL", "LIST"),
    ("CLIENT", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("REPLICAOF", "127.0.0.1", "1"),
    ("SAVE",),
    ("MODULE", "LIST"),
    ("EVAL", "return 1", "0"),
    ("FUNCTION", "LIST"),
    ("SCRIPT", "FLUSH"),
    ("GET", "somebody-elses"),
    ("SET", "somebody-elses", "1"),
    ("DEL", "somebody-elses"),
    ("MIGRATE", "127.0.0.1", "1", "k", "0", "1"),
)
FORBIDDEN: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "producer": (
        ("INFO",),
        ("LRANGE", keys.rq_queue(QUEUE), "0", "-1"),
        ("LPOP", keys.rq_queue(QUEUE)),
        ("ZRANGE", keys.claimed(QUEUE), "0", "-1"),
        ("RPUSH", "rq:queue:other-apps", ID),
        ("HSET", "rq:worker:w", "state", "dead"),
        ("SADD", keys.rq_workers(QUEUE), "rq:worker:w"),
        ("SET", keys.RQ_SUSPENDED, "1"),
        ("PUBLISH", "rq:pubsub:w", "shutdown"),
        ("SUBSCRIBE", "rq:pubsub:w"),
    ),
    "worker": (("PUBLISH", "others", "x"), ("SUBSCRIBE", "others"), ("SORT", STREAM), ("CLUSTER", "INFO")),
    "consumer": (
        ("INFO",),
        ("XADD", STREAM, "1-0", "text", "x"),
        ("XADD", STREAM, "*", "text", "x"),
        ("DEL", STREAM),
        ("EXPIRE", STREAM, "1"),
        ("HSET", REQUEST, "state", "completed"),
        ("XTRIM", STREAM, "MAXLEN", "0"),
        ("SMEMBERS", keys.RQ_QUEUES),
        ("LRANGE", keys.rq_queue(QUEUE), "0", "-1"),
        ("HGETALL", JOB),
        ("ZRANGE", keys.claimed(QUEUE), "0", "-1"),
        ("PUBLISH", keys.ENDED, ID),
        ("EVALSHA", "0" * 40, "2", REQUEST, STREAM),
        ("SCRIPT", "LOAD", "return 1"),
    ),
    "dashboard": (
        ("INFO",),
        ("HGETALL", REQUEST),
        ("XRANGE", STREAM, "-", "+"),
        ("HSET", JOB, "status", "failed"),
        ("DEL", JOB),
        ("LPUSH", keys.rq_queue(QUEUE), ID),
        ("ZADD", keys.rq_registry("failed", QUEUE), "1", ID),
        ("PUBLISH", "rq:pubsub:w", "shutdown"),
        ("EVALSHA", "0" * 40, "1", JOB),
        ("SCRIPT", "LOAD", "return 1"),
    ),
    "operator": (
        ("GET", keys.idempotency("k")),
        ("HSET", REQUEST, "state", "completed"),
        ("XADD", STREAM, "1-0", "text", "x"),
        ("DEL", STREAM),
        ("HSET", JOB, "status", "failed"),
        ("LPUSH", keys.rq_queue(QUEUE), ID),
        ("ZREM", keys.claimed(QUEUE), ID),
        ("SET", keys.RQ_SUSPENDED, "1"),
        ("PUBLISH", keys.ENDED, ID),
        ("SUBSCRIBE", keys.ENDED),
        ("EVALSHA", "0" * 40, "2", REQUEST, STREAM),
        ("SCRIPT", "LOAD", "return 1"),
    ),
}


@pytest.mark.parametrize("role", ROLES)
def test_what_a_role_must_not_do_is_refused(role: str, as_role: Callable[[str], Redis]) -> None:
    client = as_role(role)
    allowed = []
    for command in (*EVERYBODY, *FORBIDDEN[role]):
        try:
            client.execute_command(*command)  # type: ignore[no-untyped-call]
        except NoPermissionError:
            continue
        except ResponseError as error:
            allowed.append((*command, str(error)))
        else:
            allowed.append(command)
    assert not allowed


@pytest.mark.parametrize("role", ["producer", "worker"])
def test_a_script_gives_no_more_rights_than_its_caller_has(role: str, as_role: Callable[[str], Redis]) -> None:
    client = as_role(role)
    for body in ("return redis.call('GET', 'somebody-elses')", "return redis.call('FLUSHALL')"):
        sha = client.script_load(body)
        with pytest.raises(ResponseError, match="The user executing the script can't"):
            client.evalsha(sha, 1, REQUEST)
        with pytest.raises(NoPermissionError):
            client.evalsha(sha, 1, "somebody-elses")


def test_nobody_gets_in_without_a_user_and_the_health_check_only_pings(
    make_redis_server: MakeRedisServer, tmp_path: Path
) -> None:
    text = rendered(tmp_path)
    assert any(line.startswith("user default off resetpass ") for line in text.splitlines())
    server = make_redis_server()
    with connect(f"redis://health:any@127.0.0.1:{server.port}/0") as health, server.client() as admin:
        line = next(line for line in text.splitlines() if line.startswith("user health "))
        admin.execute_command("ACL", "SETUSER", *line.split()[1:])
        assert health.ping()
        for command in (("INFO",), ("GET", "x"), ("KEYS", "*"), ("CLIENT", "LIST")):
            with pytest.raises(NoPermissionError):
                health.execute_command(*command)


@pytest.fixture
def durable_server(make_redis_server: MakeRedisServer, folder: Path, tmp_path: Path) -> Iterator[RedisServer]:
    """A server as docker compose runs it: this ACL file, the default user off, an append-only file."""
    with make_redis_server().client() as client:
        skip_before_redis_7(client, "an ACL file has no selectors such as %R~")
    server = RedisServer(tmp_path, "--aclfile", str(folder / "acl" / "users.acl"), "--appendonly", "yes")
    yield server
    server.kill()


def test_what_was_written_outlives_a_restart(durable_server: RedisServer, url_of_durable: Callable[[str], str]) -> None:
    """Redis replays the file as the default user: what that one may not do is dropped, without an error to anybody."""
    with Producer(url_of_durable("producer")) as producer:
        generation = producer.submit("w1", model=MODEL)
        with running_worker(url_of_durable("worker")):
            tokens = [token.token_id for token in generation.tokens()]
        durable_server.kill()
        durable_server.start()
        assert [token.token_id for token in generation.tokens()] == tokens
        assert generation.status().tokens == len(tokens) > 0


@pytest.fixture
def url_of_durable(durable_server: RedisServer, folder: Path) -> Callable[[str], str]:
    return lambda role: role_url(durable_server, folder, role)


def test_nobody_is_the_default_user(durable_server: RedisServer) -> None:
    for userinfo in ("", "default:@", "default:x@", ":x@"):
        with (
            connect(f"redis://{userinfo}127.0.0.1:{durable_server.port}/0", retries=0) as client,
            pytest.raises((AuthenticationError, NoPermissionError)),
        ):
            client.execute_command("INFO")


def test_passwords_are_drawn_once_kept_and_never_in_the_acl_file(tmp_path: Path) -> None:
    first = rendered(tmp_path)
    passwords = {role: (tmp_path / role / "password").read_text("utf-8") for role in ROLES}
    assert len(set(passwords.values())) == len(ROLES)
    assert all(len(password) == 64 and password not in first for password in passwords.values())
    assert rendered(tmp_path) == first
    second = rendered(tmp_path, PRODUCER_PASSWORD="chosen-by-hand")
    assert (tmp_path / "producer" / "redis_url").read_text("utf-8") == "redis://producer:chosen-by-hand@redis:6379/0\n"
    assert "chosen-by-hand" not in second
    assert (tmp_path / "worker" / "password").read_text("utf-8") == passwords["worker"]


def test_a_password_that_would_break_its_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        rendered(tmp_path, WORKER_PASSWORD="a@b")
