"""What the clients talk to while a `with` block lasts: a Redis, workers and a gateway with API keys, as processes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.observe.system import environment
from tests.waiting import wait_until
from tokenrelay.producer.local import LocalRedis, LocalWorker
from tokenrelay.shared.redis.connections import connect
from tokenrelay.worker.models import weather_model_path

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL: Final = "chat"
ENDLESS: Final = "endless"
KEY: Final = "sk-clients-0123456789abcdef"
_CONTEXT: Final = 32_768
_START_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class System:
    """A running one. `model` is the folder of what clients ask as MODEL."""

    url: str
    redis_url: str
    model: Path

    def states(self) -> dict[str, str]:
        """The state of every request so far, by its ID."""
        with connect(self.redis_url) as redis:
            found = [key.decode() for key in redis.scan_iter("tokenrelay:{*}:request", count=1000)]
            return {key: (redis.hget(key, "state") or b"").decode() for key in found}


@contextmanager
def running_system(model: Path | None = None) -> Iterator[System]:
    """Serves the model folder, the bundled one where none is given, and the endless one."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenrelay-clients-")))
        redis_url = stack.enter_context(LocalRedis()).url
        folders = {MODEL: model or Path(weather_model_path()), ENDLESS: endless_model(folder / ENDLESS)}
        for name, served in folders.items():
            options = ("--model", str(served), "--served-model", name, "--slots", "4")
            stack.enter_context(LocalWorker(redis_url, model=name, options=options))
        url = stack.enter_context(_gateway(redis_url, folder / "gateway.log"))
        yield System(url, redis_url, folders[MODEL])


def endless_model(folder: Path) -> Path:
    """The bundled model, made to go on: a long context, and an end of sequence that it never draws."""
    shutil.copytree(weather_model_path(), folder)
    _edit(folder / "config.json", max_position_embeddings=_CONTEXT, eos_token_id=0)
    _edit(folder / "generation_config.json", eos_token_id=0, max_new_tokens=None)
    _edit(folder / "tokenizer_config.json", eos_token="<pad>", model_max_length=_CONTEXT)
    return folder


def _edit(file: Path, **changes: object) -> None:
    content = {**json.loads(file.read_text("utf-8")), **changes}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}), "utf-8")


@contextmanager
def _gateway(redis_url: str, log: Path) -> Iterator[str]:
    """A `tokenrelay serve` that knows one API key; its address."""
    known = json.dumps([{"name": "clients", "sha256": sha256(KEY.encode()).hexdigest()}])
    command = [sys.executable, "-m", "tokenrelay.cli", "serve", "--port", "0"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment(redis_url, API_KEYS=known), stdout=out, stderr=out)
    try:
        found = wait_until(lambda: re.search(r"^http://\S+", log.read_text("utf-8"), re.MULTILINE), _START_S)
        yield found[0]
    finally:
        process.terminate()
        process.wait(30)
