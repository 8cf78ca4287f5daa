"""The docker compose system: up, ask, inspect, kill, restart, down. The tests depend on each other, in this order."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import subprocess
import time
import urllib.error
import urllib.request
import zlib
from typing import TYPE_CHECKING, Final

import pytest

from tests.compose.conftest import DRAIN_TIMEOUT_S, PASSWORD, ROOT, inspect
from tests.integration.test_worker import entries
from tests.readers import Readers
from tests.waiting import wait_until
from tokenrelay.producer import Producer
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.wire import keys
from tokenrelay.shared.wire.entries import Started, text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from tests.compose.conftest import Compose
    from tokenrelay.producer import Generation, Options

QUESTION: Final = ("What is the weather today?", "--temperature", "0")
QUEUE: Final = keys.queue("weather", "default")
TOKENS: Final = 1500
STREAMS: Final = 8
GIB: Final = 1024**3
MIB: Final = 1024**2


@pytest.fixture(scope="module")
def producer(compose: Compose) -> Iterator[Producer]:
    """A producer on the host, with the URL of .env.example."""
    with Producer(compose.producer_url) as producer:
        yield producer


def long_streams(producer: Producer) -> list[Generation]:
    chosen: Options = {"max_new_tokens": TOKENS, "ignore_eos": True}
    return producer.submit_many(
        [{"prompt": "What is the weather today?", "seed": seed} for seed in range(STREAMS)], **chosen
    )


def check_whole(generations: list[Generation], readers: Readers) -> int:
    """Check that readers got exactly the streams' tokens. Returns the number of takeovers."""
    readers.join()
    for generation, seen in zip(generations, readers.seen, strict=True):
        answer = generation.result()
        assert len(seen) == answer.usage.completion_tokens == TOKENS
        assert [token.token_id for token in generation.tokens()] == seen
    return sum(generation.status().attempts > 1 for generation in generations)


def test_up_and_the_first_answer(compose: Compose) -> None:
    began = time.monotonic()
    compose("up", "-d", "--wait", "--wait-timeout", "180")
    ready = time.monotonic()
    asked = compose("run", "--rm", "ask", *QUESTION)
    answered = time.monotonic()
    assert asked.stdout == "It is sunny and warm.\n"
    print(f"up {ready - began:.1f} s, ask {answered - ready:.1f} s")  # noqa: T201
    assert answered - began <= 30 * slowdown()


def slowdown() -> float:
    """1 on a dedicated machine; more on a shared one, for which the promise isn't made."""
    with open("/proc/loadavg", encoding="ascii") as file:
        load = float(file.read().split()[0])
    return max(1.0, load / (len(os.sched_getaffinity(0))))


def test_the_stream_can_be_looked_at_and_not_written(compose: Compose) -> None:
    asked = compose("run", "--rm", "ask", *QUESTION)
    command = re.search(r"docker compose run --rm cli (XRANGE) '(\S+)' - \+", asked.stderr)
    assert command
    shown = compose("run", "--rm", "-T", "cli", "XRANGE", command[2], "-", "+").stdout.split()
    assert [item for item in shown if re.fullmatch(r"\d+-\d", item)][:4] == ["0-1", "0-2", "1-0", "2-0"]
    assert "completed" in shown
    for refused in (("XADD", command[2], "99-0", "text", "x"), ("KEYS", "*"), ("CONFIG", "GET", "*")):
        assert "NOPERM" in compose("run", "--rm", "-T", "cli", *refused, check=False).stdout


def test_nobody_gets_in_without_a_password(compose: Compose) -> None:
    assert "NOAUTH" in compose("exec", "-T", "redis", "redis-cli", "info", check=False).stdout


def test_containers_are_hardened(compose: Compose) -> None:
    for service in ("redis", "worker"):
        (container,) = compose.containers(service)
        found = inspect(container)
        host = found["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        assert host["Init"]
        assert host["Memory"] > 0
        assert host["PidsLimit"] > 0
        assert compose("exec", "-T", service, "id", "-u").stdout.strip() != "0"
        assert compose(
            "exec", "-T", service, "sh", "-c", "touch /x || ls /usr/bin/*gcc* /usr/bin/cc", check=False
        ).returncode
    published = inspect(compose.containers("redis")[0])["NetworkSettings"]["Ports"]["6379/tcp"]
    assert {port["HostIp"] for port in published} == {"127.0.0.1"}


def test_every_service_is_hardened(compose: Compose) -> None:
    """Those that aren't up now too, the dashboard's and the ones that only run for a moment."""
    everything = compose("--profile", "*", "config", "--format", "json").stdout
    services = json.loads(everything)["services"]
    assert {"credentials", "redis", "worker", "gateway", "ask", "cli", "dashboard"} <= set(services)
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"], name
        assert int(service["mem_limit"]) > 0, name
        assert service["pids_limit"] > 0, name
        assert not service.get("privileged"), name
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", [])), name


def test_the_health_check_tells_a_loading_worker_from_a_ready_one(compose: Compose) -> None:
    (container,) = compose.containers("worker")
    subprocess.run(["docker", "restart", "--time", "20", container], check=True, capture_output=True)
    assert inspect(container)["State"]["Health"]["Status"] == "starting"
    # Docker keeps what it found before the restart.
    began = inspect(container)["State"]["StartedAt"]
    checked = wait_until(
        lambda: [check for check in inspect(container)["State"]["Health"]["Log"] if check["Start"] > began], 30
    )
    assert checked[0]["ExitCode"] != 0
    # A report is what makes it ready: the model is loaded by then, and it takes requests.
    wait_until(lambda: inspect(container)["State"]["Health"]["Status"] == "healthy", 60)
    child = child_pid(container)
    subprocess.run(["kill", "-STOP", str(child)], check=True)
    try:
        wait_until(lambda: inspect(container)["State"]["Health"]["Status"] == "unhealthy", 60)
    finally:
        subprocess.run(["kill", "-CONT", str(child)], check=True)
    wait_until(lambda: inspect(container)["State"]["Health"]["Status"] == "healthy", 60)


def test_images_are_small_and_the_producers_has_no_torch(compose: Compose) -> None:
    sizes = {name: inspect(f"tokenrelay-{name}:cpu")["Size"] for name in ("worker", "producer")}
    base = inspect("python:3.11-slim-bookworm")["Size"]
    print({name: f"{size / 1e6:.0f} MB" for name, size in sizes.items()}, f"base {base / 1e6:.0f} MB")  # noqa: T201
    assert sizes["worker"] <= 1.6e9
    assert sizes["producer"] - base <= 250e6
    looked = compose(
        "run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "ask", "-c", "import torch", check=False
    )
    assert "No module named 'torch'" in looked.stderr


def test_secrets_stand_on_no_command_line_and_in_no_log(compose: Compose) -> None:
    for service in ("redis", "worker"):
        found = inspect(compose.containers(service)[0])
        assert PASSWORD not in str(found)
        processes = compose("exec", "-T", service, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
        secret = compose("exec", "-T", "worker", "cat", "/run/tokenrelay/redis_url").stdout.split(":")[2].split("@")[0]
        assert len(secret) == 64
        assert secret not in processes
    logs = compose("logs").stdout
    assert PASSWORD not in logs
    assert secret not in logs


def host_of(redis: Redis, generation: Generation) -> str:
    """The host name of the container that began it: the beginning of the container's ID."""
    started = next(entry for entry in entries(redis, generation.request_id) if isinstance(entry, Started))
    return text(redis.hget(keys.rq_worker(started.worker), "hostname") or b"")


def child_pid(container: str) -> int:
    """The process ID, on this machine, of a container's engine process."""
    listed = subprocess.run(["docker", "top", container, "-eo", "pid,args"], capture_output=True, text=True, check=True)
    return next(
        int(line.split()[0]) for line in listed.stdout.splitlines() if "tokenrelay.worker.supervisor.child" in line
    )


def test_a_killed_process_loses_no_token(compose: Compose, producer: Producer) -> None:
    generations = long_streams(producer)
    readers = Readers(generations)
    wait_until(lambda: readers.all_have(20), 60)
    (container,) = compose.containers("worker")
    subprocess.run(["kill", "-9", str(child_pid(container))], check=True)
    assert check_whole(generations, readers) == STREAMS


def test_a_killed_container_loses_no_token(compose: Compose, producer: Producer) -> None:
    compose("up", "-d", "--wait", "--wait-timeout", "180", "--scale", "worker=2")
    first, second = compose.containers("worker")
    generations = long_streams(producer)
    readers = Readers(generations)
    wait_until(lambda: readers.all_have(20), 60)
    # Of the container's first process, with which all others end; `docker kill` would keep it from being restarted.
    with connect(compose.producer_url) as client:
        hosts = {host_of(client, generation) for generation in generations}
    writing = next(container for container in (first, second) if container[:12] in hosts)
    subprocess.run(["kill", "-9", str(inspect(writing)["State"]["Pid"])], check=True)
    assert check_whole(generations, readers) > 0
    wait_until(lambda: inspect(writing)["State"]["Health"]["Status"] == "healthy", 90)
    assert inspect(writing)["RestartCount"] == 1


def test_a_rolling_restart_loses_no_token(compose: Compose, producer: Producer) -> None:
    generations = long_streams(producer)
    readers = Readers(generations)
    wait_until(lambda: readers.all_have(20), 60)
    for container in compose.containers("worker"):
        subprocess.run(
            ["docker", "restart", "--time", str(DRAIN_TIMEOUT_S + 15), container], check=True, capture_output=True
        )
    check_whole(generations, readers)


def test_a_restarted_redis_loses_no_token(compose: Compose, producer: Producer) -> None:
    generations = long_streams(producer)
    readers = Readers(generations)
    wait_until(lambda: readers.all_have(20), 60)
    (container,) = compose.containers("redis")
    subprocess.run(["docker", "restart", container], check=True, capture_output=True)
    check_whole(generations, readers)


def test_the_readmes_commands_run_as_written(compose: Compose) -> None:
    section = (ROOT / "README.md").read_text("utf-8").partition("## With Docker")[2].partition("\n## ")[0]
    commands = [
        shlex.split(line, comments=True) for line in re.findall(r"^\$ docker compose (.*)$", section, re.MULTILINE)
    ]
    assert commands.pop() == ["down"]  # test_down_takes_no_longer_than_the_drain
    observing = ("--profile", "observe")
    if compose(*observing, "pull", "--quiet", "prometheus", "grafana", check=False).returncode:
        # Nobody's image but ours is built here: without a registry only their configuration can be looked at.
        commands = [command for command in commands if not set(observing) <= set(command)]
        compose(*observing, "config", "--quiet")
    told = [compose(*command) for command in commands]
    assert "It is sunny and warm.\n" in [done.stdout for done in told]
    assert all(compose.containers(service) for service in ("redis", "worker", "gateway", "dashboard"))


class Bomb:
    """Unpickling it creates a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.open, ("/tmp/owned", os.O_CREAT)


def test_the_dashboard_shows_jobs_unpickles_nothing_and_changes_nothing(compose: Compose, producer: Producer) -> None:
    generation = producer.submit("What is the weather today?", temperature=0)
    generation.result()
    hostile = "H" * 22
    with connect(compose.producer_url) as client:
        for field in ("data", "meta", "result"):
            client.hset(keys.rq_job(hostile), field, zlib.compress(pickle.dumps(Bomb())))
        client.hset(
            keys.rq_job(hostile), mapping={"status": "failed", "origin": QUEUE, "created_at": "2026-01-01T00:00:00Z"}
        )
        client.expire(keys.rq_job(hostile), 600)
        client.zadd(keys.rq_registry("failed", QUEUE), {hostile: time.time() + 600})
    site = f"http://127.0.0.1:{compose.dashboard_port}"
    wait_until(lambda: status_of(site) == 200, 60)
    assert QUEUE in page(f"{site}/0/data/queues.json")
    wait_until(lambda: generation.request_id in page(f"{site}/0/data/jobs/{QUEUE}/finished/1000/asc/1.json"), 20)
    for path in (f"0/data/jobs/{QUEUE}/failed/1000/asc/1.json", f"0/view/job/{hostile}", f"0/data/job/{hostile}.json"):
        status_of(f"{site}/{path}")
    (container,) = compose.containers("dashboard")
    left = subprocess.run(["docker", "exec", container, "ls", "/tmp"], capture_output=True, text=True, check=True)
    assert "owned" not in left.stdout
    changes = [f"job/{generation.request_id}/delete", f"job/{hostile}/requeue", f"requeue/{QUEUE}"]
    changes += [f"queue/{QUEUE}/{registry}/empty" for registry in ("queued", "failed", "finished")]
    for path in (*changes, f"queue/{QUEUE}/compact"):
        assert status_of(f"{site}/{path}", method="POST") != 0
    with connect(compose.producer_url) as client:
        assert client.exists(keys.rq_job(generation.request_id))
        assert client.zscore(keys.rq_registry("finished", QUEUE), generation.request_id)
        assert client.zscore(keys.rq_registry("failed", QUEUE), hostile)
        assert client.hget(keys.rq_job(hostile), "status") == b"failed"


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        text: str = response.read().decode()
    return text


def status_of(url: str, method: str = "GET") -> int:
    """The response's status; 0 without a response."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def test_down_takes_no_longer_than_the_drain(compose: Compose, producer: Producer) -> None:
    readers_of = long_streams(producer)
    wait_until(lambda: all(generation.status().tokens >= 20 for generation in readers_of), 60)
    began = time.monotonic()
    compose("down", "-v")
    took = time.monotonic() - began
    print(f"down with {STREAMS} streams in flight: {took:.1f} s")  # noqa: T201
    assert took <= DRAIN_TIMEOUT_S + 10
    left = subprocess.run(
        ["docker", "volume", "ls", "-q", "-f", "name=tokenrelay-test_"], capture_output=True, text=True, check=True
    )
    assert left.stdout == ""
    assert compose("ps", "-a", "-q").stdout == ""


def test_the_gpu_file_is_well_formed(compose: Compose) -> None:
    compose("-f", "docker-compose.yml", "-f", "docker-compose.gpu.yml", "config", "-q")


def test_the_example_of_settings_is_well_formed_and_complete(compose: Compose) -> None:
    compose("--env-file", ".env.example", "config", "-q")
    used = re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text("utf-8"))
    named = re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE)
    assert set(used) - set(named) == {"TAG", "REDIS_IMAGE", "PROMETHEUS_IMAGE", "GRAFANA_IMAGE"}
