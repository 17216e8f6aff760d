"""Packed sentences: tokens of many sentences stand in one row, without padding; only attention needs to know
where a sentence begins. A Layout says so, and carries tokens between the row and a padded grid.

Letters in shapes: N tokens in the row, B sentences, L the longest one, H heads, K width of a head, P projections
(query, key, value) that lie side by side in one token's row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where each packed token stands.

    Attributes:
        lengths: (B,) tokens of each sentence, each at least 1.
        positions: (N,) a token's position in its own sentence, from 0.
        to_grid: (B, L) the row of the token in this cell; cells behind a sentence's end name the row 0.
        cells: (N,) the cell b * L + l of each token.
        padding: (B, L) True behind a sentence's end; None where all sentences are equally long.
    """

    lengths: Tensor
    positions: Tensor
    to_grid: Tensor
    cells: Tensor
    padding: Tensor | None

    @staticmethod
    def of(lengths: Tensor) -> "Layout":
        """The layout of sentences that follow each other in the row; lengths (B,)."""
        longest = int(lengths.max())
        starts = lengths.cumsum(0) - lengths
        steps = torch.arange(longest, device=lengths.device)
        inside = steps < lengths[:, None]  # (B, L)
        to_grid = (starts[:, None] + steps) * inside
        cells = inside.flatten().nonzero().squeeze(1)
        padding = None if bool(inside.all()) else ~inside
        return Layout(lengths, cells % longest, to_grid, cells, padding)

    @property
    def grid(self) -> tuple[int, int]:
        """(B, L)"""
        return self.to_grid.shape[0], self.to_grid.shape[1]

    def to(self, device: torch.device) -> "Layout":
        move = [getattr(self, name) for name in ("lengths", "positions", "to_grid", "cells", "padding")]
        return Layout(*[None if x is None else x.to(device, non_blocking=True) for x in move])

    def head_rows(self, num_heads: int, projections: int) -> tuple[Tensor, Tensor]:
        """The permutation between a row of tokens, seen as (N * P * H, K), and a grid of heads (P, B, H, L, K).

        Returns:
            rows: (P * B * H * L,) for every place in the grid the row that belongs there.
            places: (N * P * H,) for every row its place in the grid.
        """
        sentences, longest = self.grid
        device = self.lengths.device
        p = torch.arange(projections, device=device)
        h = torch.arange(num_heads, device=device)
        token = self.to_grid[None, :, None, :]  # (1, B, 1, L)
        rows = (token * projections + p[:, None, None, None]) * num_heads + h[None, None, :, None]
        sentence, position = self.cells // longest, self.cells % longest
        places = (p[None, :, None] * sentences + sentence[:, None, None]) * num_heads + h[None, None, :]
        places = places * longest + position[:, None, None]  # (N, P, H)
        return rows.flatten(), places.flatten()


class _Regroup(torch.autograd.Function):
    """y = x[rows]. Every row of x has one place in y that counts; the other places are padding, whose gradient
    attention makes exactly zero. So the backward is a gather too, where index_select would scatter and add."""

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(rows, places)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        _, places = ctx.saved_tensors
        return grad.index_select(0, places), None, None


def regroup(x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """Carries rows into a grid (rows, places as `Layout.head_rows` gives them) or, with the two swapped, back.

    Args:
        x: (R, K). rows: (G,) indices into x. places: (R,) with rows[places[r]] == r.
    Returns:
        (G, K). The gradient of places that repeat a row (padding) is taken to be zero.
    """
    return _Regroup.apply(x, rows, places)
