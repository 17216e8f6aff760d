"""The layers of the Transformer (sections 3.1, 3.3 and 3.5). x is (N packed tokens, d_model) throughout."""

import math

import torch
from torch import Tensor, nn

from model.attention import CrossAttention, Grid, KeyValueCache, SelfAttention
from model.config import Norm, TransformerConfig


class _CheapDropout(torch.autograd.Function):
    """Dropout from one random byte an element: torch's bernoulli_ takes 13 % of a training step on a CPU."""

    @staticmethod
    def forward(ctx, x: Tensor, threshold: int) -> Tensor:
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        keep = (words.view(torch.uint8)[: x.numel()] >= threshold).view(x.shape)
        ctx.scale = 256 / (256 - threshold)
        mask = keep.to(x.dtype).mul_(ctx.scale)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        return grad * ctx.saved_tensors[0], None


class Dropout(nn.Module):
    """Zeroes elements with the given probability while training, and scales the others by 1 / (1 - p).

    On a CPU the probability is rounded to a multiple of 1/256, and the scale follows the rounded one.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape -> the same."""
        threshold = round(self.probability * 256)
        if not self.training or threshold == 0:
            return x
        if x.device.type == "cpu":
            return _CheapDropout.apply(x, threshold)
        return nn.functional.dropout(x, self.probability)


def sinusoids(length: int, d_model: int) -> Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i / d_model)), PE(pos, 2i + 1) = cos(same) (section 3.5): (length, d_model)."""
    position = torch.arange(length, dtype=torch.float64)[:, None]
    angle = position * torch.exp(torch.arange(0, d_model, 2, dtype=torch.float64) * (-math.log(10000.0) / d_model))
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1).float()


class FeedForward(nn.Module):
    """max(0, x W1 + b1) W2 + b2 (equation 2): (N, d_model) -> (N, d_model), d_ff wide inside."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.inner = nn.Linear(d_model, d_ff)
        self.outer = nn.Linear(d_ff, d_model)
        nn.init.xavier_uniform_(self.inner.weight)
        nn.init.xavier_uniform_(self.outer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.relu(self.inner(x)))


class Residual(nn.Module):
    """The frame of a sublayer: LayerNorm(x + Dropout(sublayer(x))) (section 3.1, post-norm), or
    x + Dropout(sublayer(LayerNorm(x))) (pre-norm). Used as enter → the sublayer → leave."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        self.dropout = Dropout(config.dropout)
        self.is_pre = config.norm is Norm.pre

    def enter(self, x: Tensor) -> Tensor:
        """What the sublayer reads: (N, d_model) -> (N, d_model)."""
        return self.norm(x) if self.is_pre else x

    def leave(self, x: Tensor, change: Tensor) -> Tensor:
        """What the next sublayer gets: x before `enter` and the sublayer's output, each (N, d_model)."""
        x = x + self.dropout(change)
        return x if self.is_pre else self.norm(x)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward (figure 1, left)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config.d_model, config.num_heads, config.head_width)
        self.feed_forward = FeedForward(config.d_model, config.d_ff)
        self.around_attention = Residual(config)
        self.around_feed_forward = Residual(config)

    def forward(self, x: Tensor, source: Grid) -> Tensor:
        """x: (N source tokens, d_model) -> the same."""
        frame = self.around_attention
        x = frame.leave(x, self.self_attention(frame.enter(x), source, causal=False))
        frame = self.around_feed_forward
        return frame.leave(x, self.feed_forward(frame.enter(x)))


class DecoderLayer(nn.Module):
    """Masked self-attention, attention to the encoder's output, feed-forward (figure 1, right)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config.d_model, config.num_heads, config.head_width)
        self.cross_attention = CrossAttention(config.d_model, config.num_heads, config.head_width)
        self.feed_forward = FeedForward(config.d_model, config.d_ff)
        self.around_self_attention = Residual(config)
        self.around_cross_attention = Residual(config)
        self.around_feed_forward = Residual(config)

    def forward(self, x: Tensor, memory: Tensor, target: Grid, source: Grid) -> Tensor:
        """x: (N target tokens, d_model), memory: (N source tokens, d_model) -> like x."""
        frame = self.around_self_attention
        x = frame.leave(x, self.self_attention(frame.enter(x), target, causal=True))
        frame = self.around_cross_attention
        x = frame.leave(x, self.cross_attention(frame.enter(x), memory, target, source))
        frame = self.around_feed_forward
        return frame.leave(x, self.feed_forward(frame.enter(x)))

    def step(self, x: Tensor, cache: KeyValueCache, keys_and_values: Tensor, bias: Tensor | None) -> Tensor:
        """One more token of each hypothesis: x (R, d_model); the rest as in the attentions' own `step`."""
        frame = self.around_self_attention
        x = frame.leave(x, self.self_attention.step(frame.enter(x), cache))
        frame = self.around_cross_attention
        x = frame.leave(x, self.cross_attention.step(frame.enter(x), keys_and_values, bias))
        frame = self.around_feed_forward
        return frame.leave(x, self.feed_forward(frame.enter(x)))
