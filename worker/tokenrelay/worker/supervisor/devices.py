"""The devices that a supervisor serves, one child each."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.settings import PREFIX

if TYPE_CHECKING:
    from tokenrelay.shared.settings import WorkerSettings

_MAX_PORT: Final = 65_535
_LIST_TIMEOUT_S: Final = 30


def devices(settings: WorkerSettings) -> list[str]:
    """All NVIDIA GPUs that answer where the setting is `auto`, else the device that it names."""
    if settings.device != "auto":
        return [settings.device]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    elif shutil.which("nvidia-smi"):
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=_LIST_TIMEOUT_S
        )
        count = listed.stdout.count("GPU ") if listed.returncode == 0 else 0
    else:
        count = 0
    return [f"cuda:{index}" for index in range(count)] or ["auto"]


def check_ports(settings: WorkerSettings, children: int) -> None:
    """Raises SettingsError where there isn't a metrics port for each child."""
    last = (settings.metrics_port or 0) + children - 1
    if settings.metrics_port is not None and last > _MAX_PORT:
        ports = f"{children} engines take the ports {settings.metrics_port} to {last}, and {_MAX_PORT} is the last"
        raise SettingsError(f"{PREFIX}METRICS_PORT: {ports}")
