"""What stands between a client and the gateway in some rows: nginx with its defaults, and litellm's proxy."""

from __future__ import annotations

import json
import os
import re
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import httpx

from tests.clients.environments import clean_environment
from tests.clients.system import ENDLESS, KEY, MODEL
from tests.redis_servers import free_port
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.clients.catalogue import Client

NGINX: Final = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {upstream};
        }}
    }}
}}
"""
"""Nothing but where to: HTTP/1.0 to the gateway, answers buffered."""
_START_S: Final = 120.0


@contextmanager
def before(client: Client, upstream: str, folder: Path, binaries: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The address that the client is given, and name and version of what stands there before `upstream`."""
    if client.through == "nginx":
        with nginx(upstream, folder) as url:
            yield url, {"nginx": _version("nginx", "-v")}
    elif client.through == "litellm":
        with litellm(upstream, folder, binaries) as url:
            yield url, {"litellm": _version(str(binaries / "litellm"), "--version")}
    else:
        yield upstream, {}


def _version(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean_environment())
    found = re.search(r"\d+\.\d+[\w.]*", done.stdout + done.stderr)
    return found[0] if found else ""


@contextmanager
def nginx(upstream: str, folder: Path) -> Iterator[str]:
    """The address of an nginx before `upstream`."""
    port = free_port()
    configuration = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # else its worker is nobody, who may not write into the folder
    configuration.write_text(NGINX.format(user=user, folder=folder, port=port, upstream=upstream), "utf-8")
    command = ["nginx", "-c", str(configuration), "-p", str(folder), "-e", str(folder / "error.log")]
    with _running(command, f"http://127.0.0.1:{port}", "/health", folder) as url:
        yield url


@contextmanager
def litellm(upstream: str, folder: Path, binaries: Path) -> Iterator[str]:
    """The address of a litellm proxy before `upstream`, from the environment whose programs lie in `binaries`."""
    port = free_port()
    models = [*(MODEL, ENDLESS), "no-such-model"]
    configuration = {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": {"model": f"openai/{name}", "api_base": f"{upstream}/v1", "api_key": KEY},
            }
            for name in models
        ],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"num_retries": 0},
        "router_settings": {"num_retries": 0},
    }
    file = folder / "litellm.json"
    file.write_text(json.dumps(configuration), "utf-8")  # JSON is YAML
    command = [str(binaries / "litellm"), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
    with _running(command, f"http://127.0.0.1:{port}", "/health/liveliness", folder) as url:
        yield url


@contextmanager
def _running(command: Sequence[str], url: str, health: str, folder: Path) -> Iterator[str]:
    environment = {**clean_environment(), "HOME": str(folder)}
    with (folder / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def answers() -> bool:
        assert process.poll() is None, (folder / "proxy.log").read_text("utf-8")[-2000:]
        try:
            return httpx.get(url + health).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    try:
        wait_until(answers, _START_S)
        yield url
    finally:
        process.terminate()
        process.wait(30)
