"""Redis over TLS: the URL names the CA file. A server whose certificate another CA signed is refused."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import ConnectionError

from tests.redis_servers import RedisServer
from tests.workers import MODEL, running_worker
from tokenrelay.producer import AsyncProducer, Consumer, Producer
from tokenrelay.shared.errors import RedisUnusable
from tokenrelay.shared.redis.connections import connect
from tokenrelay.shared.settings import ProducerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "between-you-and-me"


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def make_certificates(folder: Path) -> None:
    """ca.pem, other-ca.pem, and server.pem signed by the first, for 127.0.0.1."""
    for name in ("ca", "other-ca"):
        subject = ("-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign")
        openssl(folder, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject,
                "-keyout", f"{name}.key", "-out", f"{name}.pem")  # fmt: skip
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n", "utf-8")
    openssl(folder, "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=redis",
            "-keyout", "server.key", "-out", "server.csr")  # fmt: skip
    openssl(folder, "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", "names", "-out", "server.pem")  # fmt: skip


class TlsServer(RedisServer):
    """Listens with TLS only, with the certificates in its folder."""

    def _launch(self) -> subprocess.Popen[bytes]:
        # A port of 0 is none; the one of RedisServer's choice is given to TLS.
        files = ("--tls-cert-file", "server.pem", "--tls-key-file", "server.key", "--tls-ca-cert-file", "ca.pem")
        command = [self.binary, "--port", "0", "--tls-port", str(self.port), "--bind", "127.0.0.1", *files]
        command += ["--tls-auth-clients", "no", "--requirepass", SECRET, "--save", "", "--logfile", "redis.log"]
        return subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    @property
    def url(self) -> str:
        return self.url_with("ca.pem")

    def url_with(self, ca: str) -> str:
        return f"rediss://:{SECRET}@127.0.0.1:{self.port}/0?ssl_ca_certs={self.folder / ca}"


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    if not shutil.which("openssl"):
        pytest.skip("there is no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder)
    try:
        server = TlsServer(folder)
    except RuntimeError:
        pytest.skip("this redis-server was built without TLS")
    yield server
    server.stop()


def test_a_request_goes_its_way_over_tls(tls_server: TlsServer) -> None:
    with running_worker(tls_server.url), Producer(tls_server.url) as producer, Consumer(tls_server.url) as consumer:
        generation = producer.submit("w1 w2", model=MODEL, max_new_tokens=5)
        assert len(list(consumer.get(generation.request_id).tokens())) == 5


@pytest.mark.anyio
async def test_asyncio_clients_take_the_same_url(tls_server: TlsServer) -> None:
    with running_worker(tls_server.url):
        async with AsyncProducer(tls_server.url) as producer:
            generation = await producer.submit("w1 w2", model=MODEL, max_new_tokens=5)
            assert (await generation.result()).usage.completion_tokens == 5


@pytest.mark.parametrize("ca", ["other-ca.pem", "missing.pem"])
def test_a_server_of_another_ca_is_refused(tls_server: TlsServer, ca: str) -> None:
    with connect(tls_server.url_with(ca), retries=0) as client, pytest.raises((ConnectionError, OSError)):
        client.ping()
    with pytest.raises((RedisUnusable, OSError)) as caught, Producer(tls_server.url_with(ca)) as producer:
        producer.submit("w1", model=MODEL)
    assert SECRET not in str(caught.value)


def test_the_url_may_come_from_a_file(tls_server: TlsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "redis_url"
    file.write_text(f"{tls_server.url}\n", "utf-8")
    monkeypatch.delenv("TOKENRELAY_REDIS_URL", raising=False)
    monkeypatch.setenv("TOKENRELAY_REDIS_URL_FILE", str(file))
    settings = ProducerSettings.from_environment()
    assert SECRET not in repr(settings)
    with connect(settings.redis_url.get_secret_value()) as client:
        assert client.ping()
