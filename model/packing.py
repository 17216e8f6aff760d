"""Packed sentences: the tokens of many sentences in one row, without padding. Only attention needs the sentences'
boundaries. A Layout holds the boundaries, and the indices between the row and a padded grid.

Letters in shapes: N tokens in the row, B sentences, L a grid's length, H heads, K width of a head, P projections
(query, key, value) side by side in a token's row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The place of each packed token.

    Attributes:
        lengths: (B,) tokens of each sentence, each at least 1.
        positions: (N,) a token's position in its own sentence, from 0.
        token_of_cell: (B, L) the number of each cell's token in the packed row; 0 in cells behind a sentence's end. L
            is the longest sentence's length rounded up to an even number, which halves the number of grid shapes.
        cells: (N,) the cell b * L + l of each token.
        padding: (B, L) True behind a sentence's end; None where all sentences have L tokens.
    """

    lengths: Tensor
    positions: Tensor
    token_of_cell: Tensor
    cells: Tensor
    padding: Tensor | None

    @staticmethod
    def of(lengths: Tensor) -> "Layout":
        """The layout of consecutive sentences of `lengths` tokens, (B,)."""
        longest = -(-int(lengths.max()) // 2) * 2
        starts = lengths.cumsum(0) - lengths
        steps = torch.arange(longest, device=lengths.device)
        inside = steps < lengths[:, None]  # (B, L)
        token_of_cell = (starts[:, None] + steps) * inside
        cells = inside.flatten().nonzero().squeeze(1)
        padding = None if bool(inside.all()) else ~inside
        return Layout(lengths, cells % longest, token_of_cell, cells, padding)

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L)"""
        return self.token_of_cell.shape[0], self.token_of_cell.shape[1]

    def to(self, device: torch.device) -> "Layout":
        """Returns the layout on another device."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        padding = None if self.padding is None else move(self.padding)
        return Layout(move(self.lengths), move(self.positions), move(self.token_of_cell), move(self.cells), padding)

    def head_rows(self, num_heads: int, projections: int) -> tuple[Tensor, Tensor]:
        """The permutation between a row of tokens, seen as (N * P * H, K), and a grid of heads (P, B, H, L, K).

        Returns:
            rows: (P * B * H * L,) the row of every place in the grid.
            places: (N * P * H,) the place in the grid of every row.
        """
        sentences, longest = self.shape
        device = self.lengths.device
        p = torch.arange(projections, device=device)
        h = torch.arange(num_heads, device=device)
        token = self.token_of_cell[None, :, None, :]  # (1, B, 1, L)
        rows = (token * projections + p[:, None, None, None]) * num_heads + h[None, None, :, None]
        sentence, position = self.cells // longest, self.cells % longest
        places = (p[None, :, None] * sentences + sentence[:, None, None]) * num_heads + h[None, None, :]
        places = places * longest + position[:, None, None]  # (N, P, H)
        return rows.flatten(), places.flatten()


def refuse_longer(layout: Layout, max_positions: int) -> None:
    """
    Raises:
        ValueError: a sentence of more than max_positions tokens.
    """
    longest = layout.shape[1]
    if longest > max_positions:  # L may be larger than the longest sentence by 1
        longest = int(layout.lengths.max())
    if longest > max_positions:
        raise ValueError(f"a sentence of {longest} tokens; model.max_positions is {max_positions}")


class _ToGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None


class _FromGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grid: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(rows, places)
        return grid.index_select(0, places)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        rows, places = ctx.saved_tensors
        if len(rows) == len(places):  # no padding: the inverse permutation
            return grad.index_select(0, rows), None, None
        return grad.new_zeros(len(rows), grad.shape[1]).index_copy_(0, places, grad), None, None


def to_grid(x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """Gathers a row of tokens into a grid, by the indices of `Layout.head_rows`.

    Padding repeats an arbitrary row. The backward assumes a gradient of zero in padding, as attention gives it, and so
    is a gather too; index_select's backward would scatter and add.

    Args:
        x: (N * P * H, K). rows: (P * B * H * L,). places: (N * P * H,).
    Returns:
        (P * B * H * L, K)
    """
    return _ToGrid.apply(x, rows, places)


def from_grid(grid: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """The inverse of `to_grid`: (P * B * H * L, K) -> (N * P * H, K). Drops padding, whose gradient is zero."""
    return _FromGrid.apply(grid, rows, places)
