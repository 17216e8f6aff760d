"""Scaled dot-product attention with many heads (sections 3.2.1 and 3.2.2).

Letters in shapes: N packed tokens, B sentences, L a grid's length, H heads, K width of a head, R hypotheses.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from model.packing import Layout, from_grid, to_grid


class _SoftmaxOverKeys(torch.autograd.Function):
    """softmax(scale * scores + bias) of scores (..., Lk, Lq) over the keys, as (..., Lq, Lk).

    In memory the keys come first: so a CPU takes many queries at a time, where over rows as short as a sentence
    softmax falls back to one element at a time and needs five times as long.
    """

    @staticmethod
    def forward(ctx, scores: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        by_key = scores.movedim(-2, 0)  # (Lk, ..., Lq)
        scaled = scores.new_empty(by_key.shape)
        if bias is None:
            torch.mul(by_key, scale, out=scaled)
        else:
            bias = bias.view((1,) * (scores.dim() - bias.dim()) + bias.shape).movedim(-1, 0)
            torch.add(bias, by_key, alpha=scale, out=scaled)
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


def attention_weights(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(query key^T / sqrt(K) + bias), the weights of equation 1 of the paper; every row sums to 1.

    Args:
        query: (..., Lq, K). key: (..., Lk, K).
        bias: broadcastable to (..., Lq, Lk): 0 where a query sees a key, -inf where it does not. None: sees all.
    Returns:
        (..., Lq, Lk)
    """
    # The scale keeps the scores' variance near 1, so that softmax does not saturate (section 3.2.1).
    scores = torch.matmul(key, query.transpose(-1, -2))
    return _SoftmaxOverKeys.apply(scores, bias, 1.0 / math.sqrt(query.shape[-1]))


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(query key^T / sqrt(K) + bias) value, equation 1 of the paper.

    Explicit products: on a CPU the backward of torch's scaled_dot_product_attention takes longer than all of this.

    Args:
        query: (..., Lq, K). key, value: (..., Lk, K). bias: as for `attention_weights`.
    Returns:
        (..., Lq, K)
    """
    return torch.matmul(attention_weights(query, key, bias), value)


def attend_packed(query: Tensor, key: Tensor, value: Tensor, target: "Grid", source: "Grid", causal: bool) -> Tensor:
    """The same on packed tokens, without a grid: flash attention of sentences of any length, on a GPU.

    Args:
        query: (N target tokens, H, K). key, value: (N source tokens, H, K). target, source: may be the same side.
    Returns:
        (N target tokens, H, K)
    """
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(
        query,
        key,
        value,
        target.ends,
        source.ends,
        target.shape[1],
        source.shape[1],
        window_size=(-1, 0) if causal else (-1, -1),
    )


def padding_bias(padding: Tensor, dtype: torch.dtype) -> Tensor:
    """Hides padding: (B, L) bool -> (B, 1, 1, L), -inf at True."""
    return torch.zeros(padding.shape, dtype=dtype, device=padding.device).masked_fill_(padding, -math.inf)[
        :, None, None
    ]


def causal_bias(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Hides the future: (length, length), -inf above the diagonal."""
    return torch.full((length, length), -math.inf, dtype=dtype, device=device).triu_(1)


@dataclass(frozen=True)
class Grid:
    """What every layer's attention needs to know of one packed side; each part is made once, when first asked for.

    Attributes:
        dtype: of the scores.
    """

    layout: Layout
    num_heads: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L)"""
        return self.layout.grid

    @property
    def has_packed_kernel(self) -> bool:
        """Whether `attend_packed` runs here."""
        return self.layout.lengths.is_cuda and self.dtype in (torch.bfloat16, torch.float16)

    @cached_property
    def rows(self) -> dict[int, tuple[Tensor, Tensor]]:
        """By number of projections, the gather of `Layout.head_rows`."""
        return {projections: self.layout.head_rows(self.num_heads, projections) for projections in (1, 2, 3)}

    @cached_property
    def padding_bias(self) -> Tensor | None:
        """(B, 1, 1, L), or None without padding."""
        return None if self.layout.padding is None else padding_bias(self.layout.padding, self.dtype)

    @cached_property
    def causal_bias(self) -> Tensor:
        """(L, L)"""
        return causal_bias(self.shape[1], self.dtype, self.layout.lengths.device)

    @cached_property
    def ends(self) -> Tensor:
        """(B + 1,) int32: 0, then the row behind each sentence."""
        return nn.functional.pad(self.layout.lengths.cumsum(0), (1, 0)).int()


class KeyValueCache:
    """Keys and values of the tokens decoded so far: two tensors (R, H, room, K) that grow by doubling."""

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Adds one position, key and value (R, H, K); returns all of them, (R, H, length, K)."""
        if self._keys is None or self._values is None or self.length == self._keys.shape[2]:
            room = key.new_empty(2, key.shape[0], key.shape[1], max(16, 2 * self.length), key.shape[2])
            if self._keys is not None and self._values is not None:
                room[0, :, :, : self.length] = self._keys
                room[1, :, :, : self.length] = self._values
            self._keys, self._values = room[0], room[1]
        self._keys[:, :, self.length] = key
        self._values[:, :, self.length] = value
        self.length += 1
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]

    def reorder(self, rows: Tensor) -> None:
        """Row r goes on from what was row rows[r]; rows (R',), R' may be smaller."""
        if self._keys is not None and self._values is not None:
            self._keys = self._keys.index_select(0, rows)
            self._values = self._values.index_select(0, rows)


class SelfAttention(nn.Module):
    """Multi-head attention of packed sentences to themselves."""

    def __init__(self, d_model: int, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.num_heads, self.head_width = num_heads, head_width
        self.query_key_value = nn.Linear(d_model, 3 * num_heads * head_width)
        self.output = nn.Linear(num_heads * head_width, d_model)
        for weight in self.query_key_value.weight.chunk(3):
            nn.init.xavier_uniform_(weight, gain=1 / math.sqrt(2))
        nn.init.zeros_(self.query_key_value.bias)

    def forward(self, x: Tensor, grid: Grid, causal: bool) -> Tensor:
        """x: (N, d_model) -> (N, d_model); with `causal` a token sees only itself and what stands before it."""
        heads, width = self.num_heads, self.head_width
        if grid.has_packed_kernel:
            query, key, value = self.query_key_value(x).view(-1, 3, heads, width).unbind(1)
            return self.output(attend_packed(query, key, value, grid, grid, causal).flatten(1))
        query, key, value = self._queries_keys_values(x, grid)
        # Padding stands behind a sentence's end, so the causal bias hides it from every real token.
        context = attend(query, key, value, grid.causal_bias if causal else grid.padding_bias)
        rows, places = grid.rows[1]
        return self.output(from_grid(context.reshape(-1, width), rows, places).view(-1, heads * width))

    def weights(self, x: Tensor, grid: Grid, causal: bool) -> Tensor:
        """How much `forward` takes of each token, (B, H, L queries, L keys); rows of padding mean nothing."""
        query, key, _ = self._queries_keys_values(x, grid)
        return attention_weights(query, key, grid.causal_bias if causal else grid.padding_bias)

    def _queries_keys_values(self, x: Tensor, grid: Grid) -> Tensor:
        """x: (N, d_model) -> (3, B, H, L, K)"""
        rows, places = grid.rows[3]
        heads_of = to_grid(self.query_key_value(x).view(-1, self.head_width), rows, places)
        return heads_of.view(3, grid.shape[0], self.num_heads, grid.shape[1], self.head_width)

    def step(self, x: Tensor, cache: KeyValueCache) -> Tensor:
        """One more token of each hypothesis: x (R, d_model) -> (R, d_model)."""
        query, key, value = self.query_key_value(x).view(x.shape[0], 3, self.num_heads, -1).unbind(1)  # (R, H, K)
        keys, values = cache.append(key, value)
        return self.output(attend(query[:, :, None], keys, values, None).flatten(1))


class CrossAttention(nn.Module):
    """Multi-head attention of the target's tokens to the encoder's output."""

    def __init__(self, d_model: int, num_heads: int, head_width: int) -> None:
        super().__init__()
        self.num_heads, self.head_width = num_heads, head_width
        self.query = nn.Linear(d_model, num_heads * head_width)
        self.key_value = nn.Linear(d_model, 2 * num_heads * head_width)
        self.output = nn.Linear(num_heads * head_width, d_model)
        for weight in (self.query.weight, *self.key_value.weight.chunk(2)):
            nn.init.xavier_uniform_(weight, gain=1 / math.sqrt(2))
        nn.init.zeros_(self.key_value.bias)

    def forward(self, x: Tensor, memory: Tensor, target: Grid, source: Grid) -> Tensor:
        """x: (N target tokens, d_model), memory: (N source tokens, d_model) -> like x."""
        heads, width = self.num_heads, self.head_width
        if target.has_packed_kernel:
            key, value = self.key_value(memory).view(-1, 2, heads, width).unbind(1)
            query = self.query(x).view(-1, heads, width)
            return self.output(attend_packed(query, key, value, target, source, causal=False).flatten(1))
        key, value = self.keys_and_values(memory, source)
        context = attend(self._queries(x, target), key, value, source.padding_bias)
        rows, places = target.rows[1]
        return self.output(from_grid(context.reshape(-1, width), rows, places).view(-1, heads * width))

    def weights(self, x: Tensor, memory: Tensor, target: Grid, source: Grid) -> Tensor:
        """How much `forward` takes of each source token, (B, H, L target, L source); rows of padding mean nothing."""
        key, _ = self.keys_and_values(memory, source)
        return attention_weights(self._queries(x, target), key, source.padding_bias)

    def _queries(self, x: Tensor, target: Grid) -> Tensor:
        """x: (N target tokens, d_model) -> (B, H, L, K)"""
        rows, places = target.rows[1]
        query = to_grid(self.query(x).view(-1, self.head_width), rows, places)
        return query.view(target.shape[0], self.num_heads, target.shape[1], self.head_width)

    def keys_and_values(self, memory: Tensor, source: Grid) -> Tensor:
        """memory: (N source tokens, d_model) -> (2, B, H, L, K), what `step` sees."""
        width = self.head_width
        rows, places = source.rows[2]
        grid = to_grid(self.key_value(memory).view(-1, width), rows, places)
        return grid.view(2, source.shape[0], self.num_heads, source.shape[1], width)

    def step(self, x: Tensor, keys_and_values: Tensor, bias: Tensor | None) -> Tensor:
        """One more token of each hypothesis; the B sentences have R / B hypotheses each, which share their keys.

        Args:
            x: (R, d_model). keys_and_values: (2, B, H, L, K). bias: (B, 1, 1, L) or None.
        """
        sentences, heads = keys_and_values.shape[1], self.num_heads
        query = self.query(x).view(sentences, -1, heads, keys_and_values.shape[-1]).transpose(1, 2)  # (B, H, R/B, K)
        context = attend(query, keys_and_values[0], keys_and_values[1], bias)
        return self.output(context.transpose(1, 2).reshape(x.shape[0], -1))
