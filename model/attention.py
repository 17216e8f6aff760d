"""Scaled dot-product attention with many heads (sections 3.2.1 and 3.2.2).

Letters in shapes: N packed tokens, B sentences, L a grid's length, H heads, K width of a head, R hypotheses.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from transloom.model.config import Positions
from transloom.model.dropout import Dropout
from transloom.model.kernels.linear import Linear
from transloom.model.linear_attention import (
    EluFeatures,
    RandomFeatures,
    RunningSums,
    attend_linear,
    exact,
    linear_weights,
)
from transloom.model.packing import Layout, from_grid, refuse_longer, to_grid
from transloom.model.positions import rotation_at
from transloom.model.window import RingCache, Window, attend_window, block_mask, visible, with_global_queries

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
    target: "Grid",
    source: "Grid",
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


def padding_mask(padding: Tensor, dtype: torch.dtype) -> Tensor:
    """Hides padding: (B, L) bool -> (B, 1, 1, L), -inf at True."""
    return torch.zeros(padding.shape, dtype=dtype, device=padding.device).masked_fill_(padding, -math.inf)[
        :, None, None
    ]


def causal_mask(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Hides the future: (length, length), -inf above the diagonal."""
    return torch.full((length, length), -math.inf, dtype=dtype, device=device).triu_(1)


@dataclass(frozen=True)
class Grid:
    """The layout, masks and indices that every layer's attention shares for one packed side. Each is made once, at its
    first use.

    Attributes:
        dtype: of the scores.
        rotation: (N, K) cosines and sines that turn self-attention's queries and keys; None: no rotation.
        slopes: (H,) by how much a token of distance lowers self-attention's scores (ALiBi); None: not at all.
    """

    layout: Layout
    num_heads: int
    dtype: torch.dtype
    rotation: Tensor | None = None
    slopes: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L)"""
        return self.layout.shape

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sentence; L may be larger by 1."""
        return int(self.layout.lengths.max())

    @property
    def has_packed_kernel(self) -> bool:
        """Whether `attend_packed` runs on this device and type."""
        return self.layout.lengths.is_cuda and self.dtype in (torch.bfloat16, torch.float16)

    @cached_property
    def _rows(self) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
        return {}

    def rows(self, num_heads: int, projections: int) -> tuple[Tensor, Tensor]:
        """The indices of `Layout.head_rows`, made once."""
        key = num_heads, projections
        if key not in self._rows:
            self._rows[key] = self.layout.head_rows(num_heads, projections)
        return self._rows[key]

    @cached_property
    def padding_mask(self) -> Tensor | None:
        """(B, 1, 1, L), or None without padding."""
        return None if self.layout.padding is None else padding_mask(self.layout.padding, self.dtype)

    @cached_property
    def causal_mask(self) -> Tensor:
        """(L, L)"""
        return causal_mask(self.shape[1], self.dtype, self.layout.lengths.device)

    @cached_property
    def _causal_masks(self) -> dict[int, Tensor]:
        return {1: self.causal_mask}

    def causal_mask_of(self, queries: int) -> Tensor:
        """The causal mask repeated for `queries` consecutive heads: (queries * L, L)"""
        if queries not in self._causal_masks:
            self._causal_masks[queries] = self.causal_mask.repeat(queries, 1)
        return self._causal_masks[queries]

    @cached_property
    def _masks(self) -> dict[tuple[int | None, bool, Window | None], Tensor]:
        return {}

    def mask(self, causal: bool, window: Window | None = None, queries: int | None = None) -> Tensor:
        """What to add to self-attention's scores, (1 or B, 1 or H, queries, L): -inf where a token does not see another
        one, and the slopes times the distance.

        Args:
            queries: the first so many tokens of a text; None: all L, which is quadratic.
        """
        key = self.shape[1] if queries is None else queries, causal, window
        if key not in self._masks:
            positions = torch.arange(self.shape[1], device=self.layout.lengths.device)
            sees = visible(positions[: key[0]], positions, causal, window)[None]
            if not causal and self.layout.padding is not None:
                sees = sees & ~self.layout.padding[:, None]
            self._masks[key] = self._scores_of(sees, positions[: key[0]], positions)
        return self._masks[key]

    def block_mask(self, causal: bool, window: Window) -> Tensor:
        """The same for `attend_window`, (B * chunks of a text, 1 or H, C, S). Linear in the texts' lengths."""
        key = None, causal, window
        if key not in self._masks:
            blocks = block_mask(self.layout.lengths, self.shape[1], window, causal)
            self._masks[key] = self._scores_of(*blocks).flatten(0, 1)
        return self._masks[key]

    def _scores_of(self, sees: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """(B, ..., Lq, Lk), and the positions (..., Lq) and (..., Lk) -> (B, ..., 1 or H, Lq, Lk)"""
        hidden = torch.zeros(sees.shape, dtype=self.dtype, device=sees.device).masked_fill_(~sees, -math.inf)
        hidden = hidden.unsqueeze(-3)
        if self.slopes is None:
            return hidden
        distance = (queries[..., :, None] - keys[..., None, :]).abs().unsqueeze(-3)
        return hidden - (exact(self.slopes)[:, None, None] * distance).to(self.dtype)

    @cached_property
    def ends(self) -> Tensor:
        """(B + 1,) int32: 0, then each sentence's end in the packed row (exclusive)."""
        return nn.functional.pad(self.layout.lengths.cumsum(0), (1, 0)).int()


def grid_of(model: Any, layout: Layout) -> Grid:
    """The grid that the layers share for one side.

    Raises:
        ValueError: a text of more than max_positions tokens.
    """
    refuse_longer(layout, model.config.max_positions)
    rotation = rotation_at(model, layout.positions)
    slopes = model.slopes if model.config.positions is Positions.alibi else None
    return Grid(layout, model.config.num_heads, model.embedding.weight.dtype, rotation, slopes)


def to_heads(projected: Tensor, grid: Grid, projections: int, num_heads: int | None = None) -> Tensor:
    """Adjacent projections (N, P * H * K) -> heads in the grid (P, B, H, L, K)."""
    (sentences, length), heads = grid.shape, num_heads or grid.num_heads
    rows, places = grid.rows(heads, projections)
    width = projected.shape[1] // (projections * heads)
    return to_grid(projected.reshape(-1, width), rows, places).view(projections, sentences, heads, length, width)


def from_heads(context: Tensor, grid: Grid) -> Tensor:
    """(B, H, L, K) -> (N, H * K)"""
    rows, places = grid.rows(grid.num_heads, 1)
    width = context.shape[-1]
    return from_grid(context.reshape(-1, width), rows, places).view(-1, grid.num_heads * width)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns the pairs (i, i + K / 2) of every head by the angles of the token's position (RoPE, equation 34).

    Args:
        x: (N, H, K). rotation: (N or 1, K), K / 2 cosines, then K / 2 sines.
    """
    cos, sin = rotation.to(x.dtype)[:, None].chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


@dataclass(frozen=True)
class Ragged:
    """The next positions of hypotheses of different lengths.

    Attributes:
        positions: (R,) of each hypothesis' next token.
        mask: (R, 1, 1, L) hides the cells behind that token; L counts the longest hypothesis' tokens and its next one.
    """

    positions: Tensor
    mask: Tensor

    @staticmethod
    def of(lengths: Tensor, longest: int, dtype: torch.dtype) -> "Ragged":
        """For hypotheses of `lengths` tokens, (R,), the longest of `longest` tokens."""
        behind = torch.arange(longest + 1, device=lengths.device) > lengths[:, None]
        return Ragged(lengths, padding_mask(behind, dtype))


class KeyValueCache:
    """Keys (R, G, capacity, K) and values (R, G, capacity, V) of the tokens decoded so far, from index 0 on. The
    capacity doubles when full. Cells behind the end of a shorter row hold finite numbers without meaning.

    Attributes:
        length: of the longest row.
    """

    def __init__(self) -> None:
        self.length = 0
        self._parts: list[Tensor] = []

    def fill(self, keys: Tensor, values: Tensor, length: int) -> None:
        """Stores the first tokens of all rows: keys (R, G, L, K) and values (R, G, L, V), L at least `length`."""
        self._parts = [part[:, :, :length] for part in (keys, values)]
        self.length = length

    def append(self, key: Tensor, value: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Adds one token to each row, key (R, G, K) and value (R, G, V).

        Args:
            positions: (R,) of the tokens; None: behind `length` for all.
        Returns:
            all keys (R, G, length, K) and values (R, G, length, V).
        """
        if not self._parts or self.length == self._parts[0].shape[2]:
            larger = max(16, 2 * self.length)
            grown = [part.new_zeros(*part.shape[:2], larger, part.shape[2]) for part in (key, value)]
            for new, old in zip(grown, self._parts, strict=bool(self._parts)):
                new[:, :, : self.length] = old
            self._parts = grown
        rows = None if positions is None else torch.arange(len(key), device=key.device)
        for part, new in zip(self._parts, (key, value), strict=True):
            if positions is None:
                part[:, :, self.length] = new
            else:
                part[rows, :, positions] = new
        self.length += 1
        keys, values = (part[:, :, : self.length] for part in self._parts)
        return keys, values

    def positions(self, last: Tensor) -> Tensor:
        """The position of each cell's token: (1, length)"""
        return torch.arange(self.length, device=last.device)[None]

    def reorder(self, rows: Tensor, length: int | None = None) -> None:
        """Row r becomes the old row rows[r]; rows (R',). `length`: of the longest chosen row; None: unchanged."""
        self._parts = [part.index_select(0, rows) for part in self._parts]
        self.length = self.length if length is None else length


State = KeyValueCache | RingCache | RunningSums


class SelfAttention(nn.Module):
    """Multi-head attention of packed sentences to themselves; heads are key_width (K) and value_width (V) wide.

    Keys and values may have fewer heads, G, each shared by H / G heads of queries. The query heads of a group are laid
    one behind the other, as one head of H / G times as many queries.

    Args:
        window: what a token sees; None: all.
        features: of linear attention, which has neither window, dropout nor slopes; None: softmax.
        slopes: (H,) by how much a token of distance lowers the scores of `step`; those of `forward` are the grid's.
    """

    slopes: Tensor | None

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        key_width: int,
        value_width: int,
        key_value_heads: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        window: Window | None = None,
        features: EluFeatures | RandomFeatures | None = None,
        slopes: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.window, self.features = window, features
        self.register_buffer("slopes", slopes, persistent=False)
        self.num_heads, self.key_value_heads = num_heads, key_value_heads or num_heads
        self.has_one_gather = key_width == value_width and self.key_value_heads == num_heads  # for all three
        self.key_width, self.value_width = key_width, value_width
        self.dropout = Dropout(dropout) if dropout else None  # of the weights
        self.widths = [num_heads * key_width, self.key_value_heads * key_width, self.key_value_heads * value_width]
        self.query_key_value = Linear(d_model, sum(self.widths), bias)
        self.output = Linear(num_heads * value_width, d_model, bias)
        for weight in self.query_key_value.weight.split(self.widths):
            nn.init.xavier_uniform_(weight, gain=1 / math.sqrt(2))
        if bias:
            nn.init.zeros_(self.query_key_value.bias)

    @property
    def queries_per_key(self) -> int:
        """H / G"""
        return self.num_heads // self.key_value_heads

    def forward(self, x: Tensor, grid: Grid, causal: bool, state: State | None = None) -> Tensor:
        """x: (N, d_model) -> (N, d_model); with `causal` a token sees only itself and the tokens before it.

        Between the projections runs the first of these that fits; a window counts where a text is longer:

            attend_packed   a GPU, 16 bits: K = V, no features, slopes, dropout or global tokens; needs no grid
            attend_linear   with features
            attend_window   with a window
            attend_causal   causal, L >= LONG: K = V, no slopes or dropout
            attend          everything else

        Args:
            state: of `start`; stores what `step` needs to continue behind these tokens.
        """
        projected = self._project(x, grid.rotation)
        dropout = self.dropout if self.training else None
        # Kernels differ in how they drop weights, so dropout uses explicit weights.
        has_kernel = self.key_width == self.value_width and self.features is None and self.slopes is None
        has_kernel = has_kernel and dropout is None
        window = self._window(grid)
        if grid.has_packed_kernel and has_kernel and (window is None or not window.global_tokens):
            if state is not None:
                self._fill(state, *self._to_heads(projected, grid)[1:], grid)
            query, key, value = (part.view(len(x), -1, self.key_width) for part in projected.split(self.widths, dim=1))
            return self.output(attend_packed(query, key, value, grid, grid, causal, window).flatten(1))
        query, key, value = self._to_heads(projected, grid)
        if state is not None:
            self._fill(state, key, value, grid)
        return self.output(from_heads(self.between_projections(query, key, value, grid, causal), grid))

    def between_projections(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid, causal: bool) -> Tensor:
        """What `forward` does between the projections, without a packed kernel: query (B, G, H / G * L, K), key (B, G,
        L, K), value (B, G, L, V) -> (B, H, L, V)"""
        dropout = self.dropout if self.training else None
        if self.features is not None:
            return self._linear(query, key, value, grid, causal).to(query.dtype)
        if (window := self._window(grid)) is not None:
            return self._windowed(query, key, value, grid, causal, window)
        has_causal_kernel = self.key_width == self.value_width and self.slopes is None and dropout is None
        if causal and grid.shape[1] >= LONG and has_causal_kernel:
            return attend_causal(self._by_head(query), key, value)
        # Padding stands behind a sentence's end, so the causal mask hides it from every real token
        return self._by_head(attend(query, key, value, self._mask(grid, causal), dropout))

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, G, H / G * L, width) -> (B, H, L, width)"""
        return x.reshape(len(x), self.num_heads, -1, x.shape[-1])

    def _window(self, grid: Grid) -> Window | None:
        """The window, where a text is longer."""
        return self.window if self.window is not None and grid.shape[1] > self.window.size else None

    def _windowed(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid, causal: bool, window: Window) -> Tensor:
        """As `between_projections`."""
        query = self._by_head(query)
        dropped = self.dropout.probability if self.dropout is not None and self.training else 0.0
        mask = grid.block_mask(causal, window)
        context = attend_window(query, key, value, mask, window, causal, dropped)
        if causal or not window.global_tokens:
            return context
        first = query[:, :, : window.global_tokens]
        whole = grid.padding_mask if grid.slopes is None else grid.mask(causal, queries=window.global_tokens)
        return with_global_queries(context, first, key, value, whole, dropped)

    def _linear(self, query: Tensor, key: Tensor, value: Tensor, grid: Grid, causal: bool) -> Tensor:
        """As `between_projections`, in fp32."""
        query, key = self._features(query, key, grid)
        return attend_linear(self._by_head(query), key, value, causal)

    def _features(self, query: Tensor, key: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """The features of queries and keys, zero for keys of padding."""
        assert self.features is not None
        return self.features.of_queries(query), self._key_features(key, grid)

    def _key_features(self, key: Tensor, grid: Grid) -> Tensor:
        """(B, G, L, K) -> (B, G, L, F)"""
        assert self.features is not None
        features, padding = self.features.of_keys(key), grid.layout.padding
        return features if padding is None else features * ~padding[:, None, :, None]

    def weights(self, x: Tensor, grid: Grid, causal: bool, state: State | None = None) -> Tensor:
        """The attention weights of `forward`, for the same arguments: (B, H, L queries, L keys). Rows of padding have
        no meaning."""
        query, key, _ = self._to_heads(self._project(x, grid.rotation), grid)
        if self.features is not None:
            query, key = self._features(query, key, grid)
            key = key.repeat_interleave(self.queries_per_key, dim=1)
            return linear_weights(self._by_head(query), key, causal).to(x.dtype)
        window = self._window(grid)
        mask = self._mask(grid, causal) if window is None else self._grouped(grid.mask(causal, window))
        return self._by_head(attention_weights(query, key, mask))

    def _mask(self, grid: Grid, causal: bool) -> Tensor | None:
        if grid.slopes is not None:
            return self._grouped(grid.mask(causal))
        return grid.causal_mask_of(self.queries_per_key) if causal else grid.padding_mask

    def _grouped(self, mask: Tensor) -> Tensor:
        """(1 or B, 1 or H, L, L) -> (1 or B, 1 or G, H / G * L, L)"""
        if mask.shape[1] == 1:
            return mask.repeat(1, 1, self.queries_per_key, 1)
        return mask.reshape(len(mask), self.key_value_heads, -1, mask.shape[-1])

    def _project(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """Queries, keys and values side by side, queries and keys rotated: (N, d_model) -> (N, widths)"""
        projected = self.query_key_value(x)
        if rotation is None:
            return projected
        turned = sum(self.widths[:2])
        heads = projected[:, :turned].view(len(x), -1, self.key_width)
        return torch.cat((rotate(heads, rotation).flatten(1), projected[:, turned:]), dim=1)

    def _to_heads(self, projected: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """The projections of `_project`, (N, widths), as heads: (B, G, H / G * L, K), (B, G, L, K), (B, G, L, V)"""
        if self.has_one_gather:
            query, key, value = to_heads(projected, grid, 3)
        elif self.key_value_heads == self.num_heads:
            queries_keys, values = projected.split([sum(self.widths[:2]), self.widths[2]], dim=1)
            (query, key), value = to_heads(queries_keys, grid, 2), to_heads(values, grid, 1)[0]
        else:
            parts = zip(projected.split(self.widths, dim=1), (self.num_heads, *[self.key_value_heads] * 2), strict=True)
            query, key, value = (to_heads(part, grid, 1, heads)[0] for part, heads in parts)
            query = query.view(len(key), self.key_value_heads, -1, self.key_width)
        return query, key, value

    def start(self) -> State:
        """The state of decoding before the first token."""
        if self.features is not None:
            return RunningSums()
        return KeyValueCache() if self.window is None else RingCache(self.window)

    def _fill(self, state: State, key: Tensor, value: Tensor, grid: Grid) -> None:
        match state:
            case RunningSums():
                state.fill(self._key_features(key, grid), value)
            case RingCache():
                state.fill(key, value, grid.layout.lengths)
            case KeyValueCache():
                state.fill(key, value, grid.longest)

    def step(self, x: Tensor, state: State, rotation: Tensor | None = None, ragged: Ragged | None = None) -> Tensor:
        """One more token of each hypothesis: x (R, d_model) -> (R, d_model).

        Args:
            rotation: (1 or R, K) of the positions.
            ragged: for hypotheses of different lengths; None: all are at the same position.
        """
        query, key, value = self._project(x, rotation).split(self.widths, dim=1)
        key, value = (part.view(len(x), self.key_value_heads, -1) for part in (key, value))  # (R, G, K)
        query = query.view(len(x), self.key_value_heads, self.queries_per_key, self.key_width)
        if isinstance(state, RunningSums):
            assert self.features is not None
            context = state.step(self.features.of_queries(query), self.features.of_keys(key), value).to(x.dtype)
            return self.output(context.flatten(1))
        keys, values = state.append(key, value, None if ragged is None else ragged.positions)
        mask = None
        if ragged is not None:
            mask = ragged.mask if isinstance(state, KeyValueCache) else state.mask(ragged.positions, x.dtype)
        if self.slopes is not None:
            lowered = self._lowered(state, ragged, x)
            mask = lowered if mask is None else mask + lowered
        return self.output(attend(query, keys, values, mask).flatten(1))

    def _lowered(self, state: KeyValueCache | RingCache, ragged: Ragged | None, x: Tensor) -> Tensor:
        """By how much the distance lowers the scores of the last token: (1 or R, G, H / G, keys)"""
        assert self.slopes is not None
        last = torch.tensor([state.length - 1], device=x.device) if ragged is None else ragged.positions
        distance = last[:, None] - state.positions(last)
        return -(exact(self.slopes).view(1, self.key_value_heads, -1, 1) * distance[:, None, None]).to(x.dtype)


class CrossAttention(nn.Module):
    """Multi-head attention of the target's tokens to the encoder's output; heads and widths as of SelfAttention."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        key_width: int,
        value_width: int,
        key_value_heads: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads, self.key_value_heads = num_heads, key_value_heads or num_heads
        self.has_one_width = key_width == value_width
        self.widths = [self.key_value_heads * width for width in (key_width, value_width)]
        self.query = Linear(d_model, num_heads * key_width, bias)
        self.key_value = Linear(d_model, sum(self.widths), bias)
        self.output = Linear(num_heads * value_width, d_model, bias)
        for weight in (self.query.weight, *self.key_value.weight.split(self.widths)):
            nn.init.xavier_uniform_(weight, gain=1 / math.sqrt(2))
        if bias:
            nn.init.zeros_(self.key_value.bias)

    def forward(self, x: Tensor, memory: Tensor, target: Grid, source: Grid) -> Tensor:
        """x: (N target tokens, d_model), memory: (N source tokens, d_model) -> like x."""
        if target.has_packed_kernel and self.has_one_width and self.key_value_heads == self.num_heads:
            key, value = self.key_value(memory).view(len(memory), 2, self.num_heads, -1).unbind(1)
            query = self.query(x).view(len(x), self.num_heads, -1)
            return self.output(attend_packed(query, key, value, target, source, causal=False).flatten(1))
        key, value = self.keys_and_values(memory, source)
        context = attend(self._queries(x, target), key, value, source.padding_mask)
        return self.output(from_heads(context.view(len(context), self.num_heads, -1, context.shape[-1]), target))

    def weights(self, x: Tensor, memory: Tensor, target: Grid, source: Grid) -> Tensor:
        """The attention weights of `forward`, (B, H, L target, L source). Rows of padding have no meaning."""
        key, _ = self.keys_and_values(memory, source)
        weights = attention_weights(self._queries(x, target), key, source.padding_mask)
        return weights.reshape(len(weights), self.num_heads, -1, weights.shape[-1])

    def _queries(self, x: Tensor, target: Grid) -> Tensor:
        """x: (N target tokens, d_model) -> (B, G, H / G * L, K)"""
        query = to_heads(self.query(x), target, 1)[0]
        return query.view(len(query), self.key_value_heads, -1, query.shape[-1])

    def keys_and_values(self, memory: Tensor, source: Grid) -> tuple[Tensor, Tensor]:
        """memory: (N source tokens, d_model) -> keys (B, G, L, K) and values (B, G, L, V) for `step`."""
        projected, heads = self.key_value(memory), self.key_value_heads
        if self.has_one_width:
            key, value = to_heads(projected, source, 2, heads)
        else:
            keys, values = projected.split(self.widths, dim=1)
            key, value = to_heads(keys, source, 1, heads)[0], to_heads(values, source, 1, heads)[0]
        return key, value

    def step(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """One more token of each hypothesis. Each of the B sentences has R / B hypotheses, which share its keys.

        Args:
            x: (R, d_model). keys, values: of `keys_and_values`. mask: (B, 1, 1, L) or None.
        """
        query = self.query(x).view(len(keys), -1, self.num_heads, keys.shape[-1]).transpose(1, 2)  # (B, H, R/B, K)
        hypotheses = query.shape[2]
        query = query.reshape(len(keys), self.key_value_heads, -1, keys.shape[-1])
        context = attend(query, keys, values, mask).view(len(keys), self.num_heads, hypotheses, -1)
        return self.output(context.transpose(1, 2).reshape(len(x), -1))
