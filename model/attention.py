"""Multi-head attention (section 3.2.2): which kernel computes it, and its state while decoding.

Letters in shapes: N packed tokens, B sentences, L a grid's length, H heads, K width of a head, R hypotheses.
"""

import math

import torch
from torch import Tensor, nn

from transloom.model.dropout import Dropout
from transloom.model.grid import Grid, from_heads, to_heads
from transloom.model.kernels.attention import LONG, attend, attend_causal, attend_packed, attention_weights
from transloom.model.kernels.linear import Linear
from transloom.model.key_values import KeyValueCache, Ragged
from transloom.model.linear_attention import (
    EluFeatures,
    RandomFeatures,
    RunningSums,
    attend_linear,
    exact,
    linear_weights,
)
from transloom.model.positions import rotate
from transloom.model.window import RingCache, Window, attend_window, with_global_queries

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
