"""Dropout (section 5.4 of the paper), on a CPU at a fraction of the cost of torch's dropout."""

import torch
from torch import Tensor, nn


class _AddDropped(torch.autograd.Function):
    """x + dropout(change), from one random byte an element: torch's bernoulli_ takes 13 % of a training step on a CPU.
    Multiplying by a mask of zeros and ones in x's type is the quickest way to apply the mask."""

    @staticmethod
    def forward(ctx, x: Tensor | None, change: Tensor, threshold: int) -> Tensor:
        words = torch.empty((change.numel() + 7) // 8, dtype=torch.int64, device=change.device).random_(-(2**63), None)
        random = words.view(torch.uint8)[: change.numel()].view(change.shape)
        keep = torch.ge(random, threshold, out=torch.empty_like(change))
        ctx.save_for_backward(keep)
        ctx.scale = 256 / (256 - threshold)
        if x is None:
            return (change * keep).mul_(ctx.scale)
        return torch.addcmul(x, change, keep, value=ctx.scale)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        (keep,) = ctx.saved_tensors
        return grad if ctx.needs_input_grad[0] else None, (grad * keep).mul_(ctx.scale), None


class Dropout(nn.Module):
    """Zeroes elements with the given probability while training, and scales the others by 1 / (1 - p).

    On a CPU the probability is rounded to a multiple of 1/256, and the scale follows the rounded one.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, change: Tensor, x: Tensor | None = None) -> Tensor:
        """dropout(change), plus x if given; any shape, which the result keeps."""
        threshold = round(self.probability * 256)
        if self.training and threshold and change.device.type == "cpu":
            return _AddDropped.apply(x, change, threshold)
        if self.training and threshold:
            change = nn.functional.dropout(change, self.probability)
        return change if x is None else x + change
