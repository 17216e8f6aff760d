"""The keys and values of the tokens decoded so far.

Letters in shapes: R hypotheses, L a grid's length, G heads of keys, K and V widths of a head's keys and values.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from transloom.model.grid import padding_mask


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
