"""The layers of the Transformer (sections 3.1, 3.3 and 3.5). x is (N packed tokens, d_model) throughout."""

import torch
from torch import Tensor, nn

from transloom.model.attention import CrossAttention, SelfAttention, State
from transloom.model.config import (
    Activation,
    Attention,
    DecoderConfig,
    FeatureMap,
    Norm,
    Normalization,
    Positions,
    TransformerConfig,
)
from transloom.model.dropout import Dropout
from transloom.model.grid import Grid
from transloom.model.kernels.linear import Linear
from transloom.model.key_values import Ragged
from transloom.model.linear_attention import EluFeatures, RandomFeatures
from transloom.model.positions import alibi_slopes
from transloom.model.window import Window


class _RootMeanSquare(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight, keeping only x for the backward pass. On a CPU torch's version is a chain of
    operations, each keeping its input in fp32."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        scale = torch.linalg.vecdot(x, x, dim=-1) if x.dtype is exact else x.to(exact).square().sum(-1)
        scale = (scale / x.shape[-1] + eps).rsqrt_().to(x.dtype)[..., None]
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, weight, scale = ctx.saved_tensors
        normalised = x * scale
        to_normalised = grad * weight
        share = (to_normalised * normalised).mean(-1, keepdim=True)
        to_weight = (grad * normalised).sum(0)
        return to_normalised.sub_(normalised.mul_(share)).mul_(scale), to_weight, None


class RootMeanSquareNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, equation 4): (N, d_model) -> (N, d_model)."""

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return _RootMeanSquare.apply(x, self.weight, self.eps)


def make_normalization(config: TransformerConfig | DecoderConfig) -> nn.Module:
    """(N, d_model) -> (N, d_model)"""
    if config.normalization is Normalization.rms:
        return RootMeanSquareNorm(config.d_model, config.norm_epsilon)
    return nn.LayerNorm(config.d_model, config.norm_epsilon, bias=config.bias)


class FeedForward(nn.Module):
    """max(0, x W1 + b1) W2 + b2 (equation 2), or another activation than max: (N, d_model) -> (N, d_model), d_ff wide
    inside. SwiGLU: (silu(x W1) * (x W3)) W2, W1 and W3 side by side in `inner`."""

    def __init__(self, d_model: int, d_ff: int, activation: Activation = Activation.relu, bias: bool = True) -> None:
        super().__init__()
        self.activation = activation
        self.inner = Linear(d_model, 2 * d_ff if activation is Activation.swiglu else d_ff, bias)
        self.outer = Linear(d_ff, d_model, bias)
        for weight in (*self.inner.weight.split(d_ff), self.outer.weight):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner(x)
        match self.activation:
            case Activation.relu:
                return self.outer(inner.relu_())  # in place: nothing else reads the output of `inner`
            case Activation.gelu:
                return self.outer(nn.functional.gelu(inner))
            case Activation.gelu_tanh:
                return self.outer(nn.functional.gelu(inner, approximate="tanh"))
            case Activation.swiglu:
                gate, up = inner.chunk(2, dim=1)
                return self.outer(nn.functional.silu(gate) * up)


class Residual(nn.Module):
    """The frame of a sublayer: LayerNorm(x + Dropout(sublayer(x))) (section 3.1, post-norm), or
    x + Dropout(sublayer(LayerNorm(x))) (pre-norm). Used as enter → the sublayer → leave."""

    def __init__(self, config: TransformerConfig | DecoderConfig) -> None:
        super().__init__()
        self.norm = make_normalization(config)
        self.dropout = Dropout(config.dropout)
        self.is_pre = config.norm is Norm.pre

    def enter(self, x: Tensor) -> Tensor:
        """The sublayer's input: (N, d_model) -> (N, d_model)."""
        return self.norm(x) if self.is_pre else x

    def leave(self, x: Tensor, change: Tensor) -> Tensor:
        """The next sublayer's input, from x before `enter` and the sublayer's output `change`, each (N, d_model)."""
        x = self.dropout(change, x)  # x + dropout(change)
        return x if self.is_pre else self.norm(x)


def heads_of(config: TransformerConfig | DecoderConfig) -> tuple[int, int, int, int, int, bool]:
    """The arguments of an attention layer, in the constructors' order."""
    widths = config.key_width, config.value_width
    return config.d_model, config.num_heads, *widths, config.shared_heads, config.bias


def make_self_attention(config: TransformerConfig | DecoderConfig, layer: int, dropout: float = 0.0) -> SelfAttention:
    """
    Args:
        layer: its number, which random features depend on.
    """
    window = features = None
    match config.attention, config.feature_map:
        case Attention.window, _:
            window = Window(config.window, config.global_tokens)
        case Attention.linear, FeatureMap.elu:
            features = EluFeatures()
        case Attention.linear, FeatureMap.favor:
            features = RandomFeatures(config.key_width, config.random_features, layer)
    slopes = alibi_slopes(config.num_heads) if config.positions is Positions.alibi else None
    return SelfAttention(*heads_of(config), dropout=dropout, window=window, features=features, slopes=slopes)


class SelfAttentionLayer(nn.Module):
    """Self-attention and feed-forward: the encoder's layer (figure 1, left), and with `causal` a language model's.

    Args:
        dropout: of attention's weights; the paper has none.
        layer: its number.
    """

    def __init__(
        self, config: TransformerConfig | DecoderConfig, causal: bool = False, dropout: float = 0.0, layer: int = 0
    ) -> None:
        super().__init__()
        self.causal = causal
        self.self_attention = make_self_attention(config, layer, dropout)
        self.feed_forward = FeedForward(config.d_model, config.d_ff, config.activation, config.bias)
        self.around_attention = Residual(config)
        self.around_feed_forward = Residual(config)

    def forward(self, x: Tensor, grid: Grid, state: State | None = None) -> Tensor:
        """x: (N, d_model) -> (N, d_model). The state, if given, stores what `step` needs."""
        frame = self.around_attention
        x = frame.leave(x, self.self_attention(frame.enter(x), grid, self.causal, state))
        frame = self.around_feed_forward
        return frame.leave(x, self.feed_forward(frame.enter(x)))

    def step(self, x: Tensor, state: State, rotation: Tensor | None, ragged: Ragged | None) -> Tensor:
        """One more token of each hypothesis: x (R, d_model) -> (R, d_model); other arguments as in
        `SelfAttention.step`."""
        frame = self.around_attention
        x = frame.leave(x, self.self_attention.step(frame.enter(x), state, rotation, ragged))
        frame = self.around_feed_forward
        return frame.leave(x, self.feed_forward(frame.enter(x)))


class DecoderLayer(nn.Module):
    """Masked self-attention, attention to the encoder's output, feed-forward (figure 1, right)."""

    def __init__(self, config: TransformerConfig, layer: int = 0) -> None:
        super().__init__()
        self.self_attention = make_self_attention(config, layer)
        self.cross_attention = CrossAttention(*heads_of(config))
        self.feed_forward = FeedForward(config.d_model, config.d_ff, config.activation, config.bias)
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

    def step(
        self,
        x: Tensor,
        state: State,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        rotation: Tensor | None,
    ) -> Tensor:
        """One more token of each hypothesis: x (R, d_model) -> (R, d_model); other arguments as in the `step` of the
        attention layers."""
        frame = self.around_self_attention
        x = frame.leave(x, self.self_attention.step(frame.enter(x), state, rotation))
        frame = self.around_cross_attention
        x = frame.leave(x, self.cross_attention.step(frame.enter(x), keys, values, mask))
        frame = self.around_feed_forward
        return frame.leave(x, self.feed_forward(frame.enter(x)))
