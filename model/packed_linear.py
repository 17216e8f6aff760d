"""Products with fixed weights, for inference on a CPU.

torch multiplies fp32 matrices by MKL, which is slow on processors other than Intel's (on an AMD EPYC 100 GFLOP/s a
core, oneDNN 230), and rearranges bf16 weights for every product. This module rearranges the weights into oneDNN's
layout once, through the operators of torch.compile's CPU backend.
"""

import torch
from torch import Tensor, nn

from transloom.model.build import Model

ROWS = 256  # of a typical product, for which oneDNN chooses the layout; products of other sizes work, too


class PackedLinear(nn.Module):
    """x W^T + b with fixed weights: (..., inputs) -> (..., outputs)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def pack_linears(model: Model) -> Model:
    """Packs the weights of a model's linear layers and of its projection to the vocabulary, in place. A packed model
    can neither train nor be saved.

    Returns:
        the model; unchanged if packed already, or if this torch lacks the operators for the model's device and type.
    """
    weight = model.output_weight
    if model.packed_projection is not None or not _can_pack(weight):
        return model
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, PackedLinear(child.weight, child.bias))
    model.packed_projection = PackedLinear(weight)
    return model


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    try:
        PackedLinear(weight[:8])(weight[:1])
    except (AttributeError, RuntimeError, TypeError):  # the operators are private to torch, and may change
        return False
    return True
