"""Linear layers on a CPU with weights packed once, in the blocks that oneDNN's matrix products need.

torch's own layer hands oneDNN or MKL the weights as they are stored, to be rearranged in every call. A decode step has
few rows for each weight, so that this takes 30 to 40 % of its products' time (docs/adr/0009). The operators are those
that torch's compiler uses, and have no other name; where they are missing or fail, layers are left unchanged.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import torch
from torch.nn.functional import linear

log = logging.getLogger(__name__)

_ROWS: Final = 32
"""For how many rows weights are packed. Any number can be multiplied; packed for one row, float32 is slower."""


class PackedLinear(torch.nn.Module):
    """`torch.nn.Linear` for inference: (…, in) gives (…, out)."""

    def __init__(self, given: torch.nn.Linear) -> None:
        """Raises RuntimeError, AttributeError or TypeError where the weight can't be packed."""
        super().__init__()
        self.in_features, self.out_features = given.in_features, given.out_features
        self.bias = given.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(given.weight.detach(), _ROWS)

    @property
    def weight(self) -> torch.Tensor:
        """(out, in), bit for bit what was packed, unpacked each time: for code that rarely reads it."""
        unpacked: torch.Tensor = self._packed.to_dense()
        return unpacked

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if not rows.numel():
            return rows.new_empty(*rows.shape[:-1], self.out_features)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, "none", [], "")
        return product


class _Probe(torch.nn.Module):
    """A linear layer that records whether its weight is read directly instead of the layer being called."""

    def __init__(self, given: torch.nn.Linear) -> None:
        super().__init__()
        self.given = given
        self.weight_read = False

    @property
    def weight(self) -> torch.Tensor:
        self.weight_read = True
        return self.given.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.given.bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return linear(rows, self.given.weight, self.given.bias)


def pack_linears(model: torch.nn.Module) -> int:
    """Replace a causal LM's linear layers by packed ones where possible. Returns how many were replaced.

    The model is run on two tokens first. A layer whose weight it reads directly is left unchanged, since each read of a
    packed one unpacks it; where that run fails, all layers are.
    """
    layers = _linear_layers(model)
    watched = {layer: _Probe(layer) for layer in layers}
    for layer, places in layers.items():
        _put(watched[layer], places)
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    except Exception as error:  # noqa: BLE001  whatever its own code raises
        log.info("linear layers aren't packed: the trial run on two tokens failed (%s)", error)
        return 0
    finally:
        for layer, places in layers.items():
            _put(layer, places)
    count = 0
    while layers:  # one by one: each weight is freed once it's packed
        layer, places = layers.popitem()
        if not watched.pop(layer).weight_read:
            try:
                _put(PackedLinear(layer), places)
                count += 1
            except (RuntimeError, AttributeError, TypeError) as error:  # a torch without the operator, or a processor
                log.debug("a linear layer isn't packed: %s", error)
    return count


_Places = list[tuple[torch.nn.Module, str]]
"""The modules that hold a layer, and its attribute name in each."""


def _linear_layers(model: torch.nn.Module) -> dict[torch.nn.Linear, _Places]:
    layers: dict[torch.nn.Linear, _Places] = {}
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.Linear) and _can_pack(child):
                layers.setdefault(child, []).append((parent, name))
    return layers


def _put(layer: torch.nn.Module, places: _Places) -> None:
    for parent, name in places:
        setattr(parent, name, layer)


def _can_pack(layer: torch.nn.Linear) -> bool:
    # Exactly these types: a subclass, or a weight of a quantised kind, has a product of its own.
    if type(layer) is not torch.nn.Linear or type(layer.weight) is not torch.nn.Parameter:
        return False
    weight = layer.weight
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    operators: Any = torch.ops.mkldnn
    if weight.dtype is torch.bfloat16:
        return bool(operators._is_mkldnn_bf16_supported())
    if weight.dtype is torch.float16:
        return bool(operators._is_mkldnn_fp16_supported())
    return weight.dtype is torch.float32
