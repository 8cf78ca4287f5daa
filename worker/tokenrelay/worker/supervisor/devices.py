"""The devices that a supervisor serves, one child each."""

from __future__ import annotations

import os
import shutil
import subprocess
from itertools import takewhile
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.settings import PREFIX

if TYPE_CHECKING:
    from tokenrelay.shared.settings import WorkerSettings

_MAX_PORT: Final = 65_535


def devices(settings: WorkerSettings, timeout_s: float = 30.0) -> list[str]:
    """All NVIDIA GPUs that answer where the setting is `auto`, else the device that it names.

    Raises SettingsError where the driver doesn't answer within the time.
    """
    if settings.device != "auto":
        return [settings.device]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # CUDA ignores what stands behind an invalid one
        count = len(list(takewhile(lambda part: part.strip() not in ("", "-1"), visible.split(","))))
    else:
        count = _listed(timeout_s) if shutil.which("nvidia-smi") else 0
    return [f"cuda:{index}" for index in range(count)] or ["auto"]


def _listed(timeout_s: float) -> int:
    """How many GPUs nvidia-smi lists. A laptop's has "GPU" in its name, too."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        message = f"nvidia-smi didn't list the GPUs within {timeout_s:g} s: check the driver, or name the device"
        raise SettingsError(f"{PREFIX}DEVICE: {message}") from None
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def check_ports(settings: WorkerSettings, children: int) -> None:
    """Raises SettingsError where there isn't a metrics port for each child."""
    last = (settings.metrics_port or 0) + children - 1
    if settings.metrics_port is not None and last > _MAX_PORT:
        ports = f"{children} engines take the ports {settings.metrics_port} to {last}, and {_MAX_PORT} is the last"
        raise SettingsError(f"{PREFIX}METRICS_PORT: {ports}")
