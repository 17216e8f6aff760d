"""Scaled dot-product attention (section 3.2.1): explicit products, and torch's kernels.

Letters in shapes: N packed tokens, B sentences, L a grid's length, H heads of queries, G of keys, K width of a head.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from transloom.model.grid import Grid
from transloom.model.window import Window

LONG = 64  # tokens: from this length on torch's causal attention is quicker, forward and backward together


class _SoftmaxOverKeys(torch.autograd.Function):
    """softmax(scale * scores + mask) of scores (..., Lk, Lq) over the keys, as (..., Lq, Lk).

    The keys come first in memory, so a CPU's softmax takes many queries at a time. Over rows as short as a sentence
    softmax works element by element and takes five times as long.
    """

    @staticmethod
    def forward(ctx, scores: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        by_key = scores.movedim(-2, 0)  # (Lk, ..., Lq)
        scaled = scores.new_empty(by_key.shape)
        if mask is None:
            torch.mul(by_key, scale, out=scaled)
        else:
            mask = mask.view((1,) * (scores.dim() - mask.dim()) + mask.shape).movedim(-1, 0)
            torch.add(mask, by_key, alpha=scale, out=scaled)
        weights = scaled.softmax(0)
        ctx.save_for_backward(weights)
        ctx.scale = scale
        return weights.movedim(0, -1)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        (weights,) = ctx.saved_tensors
        by_key = grad.movedim(-1, 0).contiguous()
        change = torch.ops.aten._softmax_backward_data(by_key, weights, 0, weights.dtype)
        return change.mul_(ctx.scale).movedim(0, -2), None, None


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(query key^T / sqrt(K) + mask), the weights of equation 1 of the paper; every row sums to 1.

    Args:
        query: (..., Lq, K). key: (..., Lk, K).
        mask: broadcastable to (..., Lq, Lk): 0 where a query sees a key, -inf where it does not. None: sees all.
    Returns:
        (..., Lq, Lk)
    """
    # The scale keeps the scores' variance near 1, so that softmax does not saturate (section 3.2.1).
    scale = 1.0 / math.sqrt(query.shape[-1])
    if query.shape[-2] == 1 and mask is None and query.dtype is torch.float32:  # decoding: the plain product is quicker
        return torch.matmul(query * scale, key.transpose(-1, -2)).softmax(-1)
    return _SoftmaxOverKeys.apply(torch.matmul(key, query.transpose(-1, -2)), mask, scale)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: nn.Module | None = None) -> Tensor:
    """softmax(query key^T / sqrt(K) + mask) value, equation 1 of the paper.

    The products are explicit: up to LONG tokens, the backward of torch's scaled_dot_product_attention takes longer on a
    CPU than the whole explicit computation.

    Args:
        query: (..., Lq, K). key, value: (..., Lk, K). mask: as for `attention_weights`. dropout: of the weights.
    Returns:
        (..., Lq, K)
    """
    weights = attention_weights(query, key, mask)
    return torch.matmul(weights if dropout is None else dropout(weights), value)


def attend_causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal `attend`: each token sees itself and the tokens before it. Keeps no (L, L) weights in memory.

    Args:
        query: (B, H, L, K). key, value: (B, G, L, K), each head for H / G heads of queries.
    Returns:
        (B, H, L, K)
    """
    is_grouped = key.shape[1] < query.shape[1]
    return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=is_grouped)


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    target: Grid,
    source: Grid,
    causal: bool,
    window: Window | None = None,
) -> Tensor:
    """Attention on packed tokens, without a grid: flash attention of sentences of any length, on a GPU.

    Args:
        query: (N target tokens, H, K). key, value: (N source tokens, G, K). target, source: one side in self-attention.
        window: without global tokens, which the kernel does not know: these take `attend_window` on a GPU too. Neither
            is flex_attention used, whose masks would have them: it needs torch's compiler, and has no backward pass on
            a CPU.
    Returns:
        (N target tokens, H, K)
    """
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if window is None else window.size - 1
    window_size = reach, 0 if causal else reach
    lengths = target.ends, source.ends, target.shape[1], source.shape[1]
    grouped: dict[str, Any] = (
        {"enable_gqa": True} if key.shape[1] < query.shape[1] else {}
    )  # unknown to older versions of torch
    return cast(Tensor, varlen_attn(query, key, value, *lengths, window_size=window_size, **grouped))
