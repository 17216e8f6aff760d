"""Low-rank adapters (Hu et al. 2021, section 4.1): a linear layer's weight W stays, W + alpha / rank * B A computes.

The adapters of a layer whose weight holds several maps side by side, such as queries, keys and values, share A.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn import functional

from transloom.model.attention import CrossAttention, SelfAttention
from transloom.model.kernels.linear import Linear
from transloom.model.layers import FeedForward

A, B = ".lora_a", ".lora_b"  # ends of the parameters' names


class AdaptedLayers(Enum):
    """The linear layers that get adapters."""

    attention = "attention"
    feed_forward = "feed_forward"
    all = "all"


@dataclass(frozen=True)
class LoraConfig:
    """The adapters of a model.

    Attributes:
        rank: of the product B A; 0: no adapters.
        alpha: the product's factor is alpha / rank.
        layers: which linear layers are adapted, in the encoder and the decoder.

    Raises:
        ValueError: if a number makes no sense, naming the field.
    """

    rank: int = 0
    alpha: float = 16.0
    layers: AdaptedLayers = AdaptedLayers.all

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"rank: must be at least 1, or 0 for no adapters, not {self.rank}")
        if self.alpha <= 0.0:
            raise ValueError(f"alpha: must be above 0, not {self.alpha}")

    @property
    def scale(self) -> float:
        """alpha / rank, the factor of B A."""
        return self.alpha / max(1, self.rank)


class LoraLinear(Linear):
    """x (weight + scale B A)^T + bias: (N, I) -> (N, O). B begins at zero, so the layer computes what it did before.

    lora_a: A (rank, I), with a variance of 1 / I. lora_b: B (O, rank).
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        has_bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, has_bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = scale
        like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features, **like))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank, **like))
        nn.init.normal_(self.lora_a, std=linear.in_features**-0.5)

    def forward(self, input: Tensor) -> Tensor:
        change = functional.linear(functional.linear(input, self.lora_a), self.lora_b)
        return super().forward(input) + self.scale * change


def add_adapters(model: nn.Module, config: LoraConfig) -> int:
    """Adds adapters to a model's linear layers, in place; A is drawn from torch's generator.

    Returns:
        the number of adapted layers.
    """
    parents: tuple[type[nn.Module], ...] = ()
    if config.layers is not AdaptedLayers.feed_forward:
        parents += (SelfAttention, CrossAttention)
    if config.layers is not AdaptedLayers.attention:
        parents += (FeedForward,)
    count = 0
    for parent in [module for module in model.modules() if isinstance(module, parents)]:
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, LoraLinear(child, config.rank, config.scale))
                count += 1
    return count


def merge_adapters(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The weights of the same model without adapters: weight + scale B A in place of each adapted weight.

    Args:
        weights: by name, with or without adapters; unchanged.
    """
    merged = {name: tensor for name, tensor in weights.items() if not name.endswith((A, B))}
    for name, a in weights.items():
        if name.endswith(A):
            layer = name.removesuffix(A)
            merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + scale * weights[f"{layer}{B}"] @ a
    return merged
