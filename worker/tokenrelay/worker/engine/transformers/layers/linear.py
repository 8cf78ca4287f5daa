"""Linear layers on a CPU with their weights packed once, in the blocks that oneDNN's matrix products want.

torch's own layer hands oneDNN or MKL the weights as they are stored, to be rearranged in every call. A decode step has
few rows for each weight, so that this takes 30 to 40 % of its products' time (docs/adr/0009). The operators are those
that torch's compiler uses, and have no other name; where they are missing or refuse, layers stay what they were.
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
        """(out, in), bit for bit what was packed, made anew each time: for code that seldom looks."""
        unpacked: torch.Tensor = self._packed.to_dense()
        return unpacked

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if not rows.numel():
            return rows.new_empty(*rows.shape[:-1], self.out_features)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, "none", [], "")
        return product


class _Watched(torch.nn.Module):
    """A linear layer that notices who looks at its weight instead of calling it."""

    def __init__(self, given: torch.nn.Linear) -> None:
        super().__init__()
        self.given = given
        self.looked_at = False

    @property
    def weight(self) -> torch.Tensor:
        self.looked_at = True
        return self.given.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.given.bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return linear(rows, self.given.weight, self.given.bias)


def pack_linears(model: torch.nn.Module) -> int:
    """Put packed layers in the place of a causal LM's linear ones, as many as can be. Returns how many that are.

    The model is run on two tokens first. A layer at whose weight it looks then stays as it is, since each look at a
    packed one would unpack it; where it can't be run so, all of them stay.
    """
    layers = _linear_layers(model)
    watched = {layer: _Watched(layer) for layer in layers}
    for layer, places in layers.items():
        _put(watched[layer], places)
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    except Exception as error:  # noqa: BLE001  whatever its own code raises
        log.info("linear layers stay as they are: two tokens can't be tried (%s)", error)
        return 0
    finally:
        for layer, places in layers.items():
            _put(layer, places)
    count = 0
    while layers:  # one by one: each weight goes when it's packed
        layer, places = layers.popitem()
        if not watched.pop(layer).looked_at:
            try:
                _put(PackedLinear(layer), places)
                count += 1
            except (RuntimeError, AttributeError, TypeError) as error:  # a torch without the operator, or a processor
                log.debug("a linear layer stays as it is: %s", error)
    return count


_Places = list[tuple[torch.nn.Module, str]]
"""Modules that have a layer, each with its name for it."""


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
