"""Attention on packed tokens by the GPU's kernel, in bf16, against the same on the CPU in fp32.

Both begin with the same numbers, those of bf16, so that all they differ by is how they compute.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from transloom.model.attention import CrossAttention, SelfAttention
from transloom.model.config import TransformerConfig
from transloom.model.grid import Grid
from transloom.model.losses import label_smoothed_cross_entropy
from transloom.model.packing import Layout
from transloom.model.transformer import Transformer
from transloom.pipeline.data.tokenizer import EOS_ID
from transloom.pipeline.gpu_check.outcome import Outcome, Target
from transloom.pipeline.gpu_check.settings import AttentionSize

# Largest distance from the CPU's result, relative to its norm. A number in bf16 is off by up to 0.4 %.
FORWARD, GRADIENT = 1e-2, 2e-2
MODEL_FORWARD, MODEL_GRADIENT = 3e-2, 6e-2  # four layers, one after the other

Compute = Callable[[torch.device, torch.dtype], tuple[Tensor, list[Tensor]]]  # (output, gradients)


@dataclass(frozen=True)
class Difference:
    """Distances relative to the norm of the CPU's result."""

    forward: float
    gradient: float


def check_attention(size: AttentionSize, device: torch.device) -> Outcome:
    """Self-attention, with and without the future, cross-attention, and a whole model with its loss."""
    target, source = Layout.of(torch.tensor(size.lengths)), Layout.of(torch.tensor(size.lengths[::-1]))
    found = {
        "self-attention": _compare(_attention(size.model, target, None, causal=False), device),
        "causal self-attention": _compare(_attention(size.model, target, None, causal=True), device),
        "cross-attention": _compare(_attention(size.model, target, source, causal=False), device),
        "model": _compare(_model(size, target, source), device),
    }
    is_packed = Grid(target.to(device), size.model.num_heads, torch.bfloat16).has_packed_kernel
    targets = [Target("the packed kernel is in use", float(is_packed), 1.0)] if device.type == "cuda" else []
    for name, one in found.items():
        forward, gradient = (MODEL_FORWARD, MODEL_GRADIENT) if name == "model" else (FORWARD, GRADIENT)
        targets.append(Target(f"{name}: distance", one.forward, forward, at_least=False))
        targets.append(Target(f"{name}: distance of gradients", one.gradient, gradient, at_least=False))
    largest = max(one.forward for one in found.values()), max(one.gradient for one in found.values())
    figures = {
        "packed_kernel": is_packed,
        "lengths": list(size.lengths),
        "distances": {name: vars(one) for name, one in found.items()},
    }
    kernel = "packed kernel" if is_packed else "no packed kernel"
    return Outcome(
        f"{kernel}; at most {largest[0]:.2%} from the CPU in fp32, gradients {largest[1]:.2%}", figures, targets
    )


def _compare(compute: Compute, device: torch.device) -> Difference:
    expected, expected_gradients = compute(torch.device("cpu"), torch.float32)
    output, gradients = compute(device, torch.bfloat16)
    return Difference(_distance([output], [expected]), _distance(gradients, expected_gradients))


def _distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The norm of the difference of all together, relative to the others' norm."""
    difference = sum(
        float((a.cpu().double() - b.cpu().double()).square().sum()) for a, b in zip(some, others, strict=True)
    )
    norm = sum(float(b.cpu().double().square().sum()) for b in others)
    return (difference / norm) ** 0.5


def _attention(config: TransformerConfig, target: Layout, source: Layout | None, causal: bool) -> Compute:
    """One module of attention; its own tokens (N, d_model), and for cross-attention those of the encoder."""
    torch.manual_seed(0)
    widths = config.d_model, config.num_heads, config.key_width, config.value_width
    weights = (SelfAttention if source is None else CrossAttention)(*widths).bfloat16()
    sides = [target] if source is None else [target, source]
    tokens = [torch.randn(int(side.lengths.sum()), config.d_model).bfloat16() for side in sides]
    probe = torch.randn_like(tokens[0])

    def compute(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        module = _copy(weights, device, dtype)
        inputs = [x.to(device, dtype).requires_grad_() for x in tokens]
        grids = [Grid(side.to(device), config.num_heads, dtype) for side in sides]
        output = module(*inputs, *grids, **({"causal": causal} if source is None else {}))
        output.backward(probe.to(device, dtype))
        return output.detach(), _gradients([*inputs, *module.parameters()])

    return compute


def _model(size: AttentionSize, target: Layout, source: Layout) -> Compute:
    """A whole model: its output, and the gradients of its loss."""
    torch.manual_seed(0)
    weights = Transformer(size.model, size.vocab_size).bfloat16()
    target_ids, source_ids, labels = (
        torch.randint(EOS_ID + 1, size.vocab_size, (int(side.lengths.sum()),)) for side in (target, source, target)
    )

    def compute(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        model = _copy(weights, device, dtype)
        sides = source_ids.to(device), source.to(device), target_ids.to(device), target.to(device)
        hidden = model(*sides)
        loss = label_smoothed_cross_entropy(hidden, model.output_weight, labels.to(device), smoothing=0.1)
        (loss.total / loss.num_tokens).backward()
        return hidden.detach(), _gradients(model.parameters())

    return compute


def _copy(module: nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
    """A copy elsewhere and in another type, whose buffers are in bf16's numbers too."""
    return copy.deepcopy(module).to(device, dtype)


def _gradients(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.grad for tensor in tensors if tensor.grad is not None]
