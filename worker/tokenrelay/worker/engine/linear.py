"""Linear layers on a CPU with their weights packed once, in the blocks that oneDNN's matrix products want.

torch's own layer hands oneDNN or MKL the weights as they are stored, to be rearranged in every call. A decode step has
few rows for each weight, so that this takes a third to a half of its products (docs/adr/0009). The operators are those
that torch's compiler uses, and have no other name; where they are missing or refuse, layers stay what they were.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import torch

log = logging.getLogger(__name__)

_ROWS: Final = 32
"""For how many rows weights are packed: other numbers take the same blocks."""


class PackedLinear(torch.nn.Module):
    """`torch.nn.Linear` for inference: (…, in) gives (…, out). Its weight can't be read, only multiplied with."""

    def __init__(self, given: torch.nn.Linear) -> None:
        """Raises RuntimeError where the weight can't be packed."""
        super().__init__()
        self.in_features, self.out_features = given.in_features, given.out_features
        self.bias = given.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(given.weight.detach(), _ROWS)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if not rows.numel():
            return rows.new_empty(*rows.shape[:-1], self.out_features)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self.bias, "none", [], "")
        return product

    def unpacked(self) -> torch.nn.Linear:
        """The layer that it was made of."""
        with torch.device("meta"):
            made = torch.nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        made.weight = torch.nn.Parameter(self._weight.to_dense(), requires_grad=False)
        made.bias = self.bias
        return made


def pack_linears(model: torch.nn.Module) -> int:
    """Put packed layers in the place of a model's linear ones, as many as can be. Returns how many that are.

    A model that looks at its layers' weights, which some do, is left as it was.
    """
    count = 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear and _can_pack(layer.weight):
                try:
                    setattr(parent, name, PackedLinear(layer))
                    count += 1
                except (RuntimeError, AttributeError) as error:  # a torch without the operator, or a processor
                    log.debug("linear layer %s stays as it is: %s", name, error)
    if count and (refusal := _refusal(model)):
        log.info("linear layers stay as they are: the model doesn't run on packed ones (%s)", refusal)
        unpack_linears(model)
        return 0
    return count


def unpack_linears(model: torch.nn.Module) -> None:
    """Undo `pack_linears`: the same weights, bit for bit."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, PackedLinear):
                setattr(parent, name, layer.unpacked())


def _can_pack(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    operators: Any = torch.ops.mkldnn
    if weight.dtype is torch.bfloat16:
        return bool(operators._is_mkldnn_bf16_supported())
    if weight.dtype is torch.float16:
        return bool(operators._is_mkldnn_fp16_supported())
    return weight.dtype is torch.float32


def _refusal(model: torch.nn.Module) -> Exception | None:
    """What the model raises when it is run on two tokens."""
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    except Exception as error:  # noqa: BLE001  whatever its own code makes of a layer without a weight
        return error
    return None
