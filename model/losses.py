"""Losses as sums: the training loop divides once, by the step's number of target tokens over all workers."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional


class LossSum(NamedTuple):
    """A loss summed over tokens (nats; a scalar in fp32) and the number of tokens that it sums over."""

    total: Tensor
    num_tokens: int


def label_smoothed_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> LossSum:
    """Cross-entropy of softmax(hidden weight^T) to the smoothed labels (section 5.4), summed over tokens.

    With smoothing e over a vocabulary of V the label's share is 1 - e + e / V and every other token's e / V
    (Szegedy et al. 2016): -sum_v q(v) log p(v).

    Args:
        hidden: (N, d_model). weight: (V, d_model). labels: (N,) ids.
    """
    logits = functional.linear(hidden, weight)
    # In the logits' dtype, since a [tokens × vocabulary] matrix in fp32 is the largest thing in memory; the kernel
    # computes in fp32 inside. Only the sum over tokens needs fp32: a bf16 sum of 4096 losses keeps 8 bits.
    losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return LossSum(losses.float().sum(), labels.numel())
