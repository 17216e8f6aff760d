"""Packed sentences as a grid of cells: what all layers' attention shares of one side.

Letters in shapes: N packed tokens, B sentences, L a grid's length, H heads, K width of a head.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from transloom.model.config import Positions
from transloom.model.linear_attention import exact
from transloom.model.packing import Layout, from_grid, refuse_longer, to_grid
from transloom.model.positions import rotation_at
from transloom.model.window import Window, block_mask, visible


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
