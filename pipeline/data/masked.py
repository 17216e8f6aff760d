"""Masks tokens of documents for a masked language model (Devlin et al. 2018, section 3.1): a pure function of (seed,
epoch, piece), never of the number of workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from transloom.model.packing import Layout
from transloom.pipeline.data.packing import ROW_MULTIPLE, filler, pack
from transloom.pipeline.data.pieces import cut_documents
from transloom.pipeline.tasks.task import Examples

SHARE = 0.15  # of a piece's tokens that are predicted
MASKED, RANDOM = 0.8, 0.1  # of these: replaced by the mask, and by a random token; the others stay
FIXED_SEED = 20181011  # of validation and test, whose masks are the same in all epochs


class MaskedPiece(NamedTuple):
    """A piece with some of its tokens replaced.

    Attributes:
        tokens: (length,) ids that the model reads.
        places: (masked,) positions of the tokens to predict, in their order. labels: (masked,) these tokens.
    """

    tokens: np.ndarray
    places: np.ndarray
    labels: np.ndarray


class MaskedPieces:
    """Pieces of documents as the examples of an epoch, with the columns masked (the tokens to predict) and text (the
    tokens of the piece). A document's first piece begins with the end of text, which is predicted only where it is the
    piece's only token.

    Attributes:
        lengths: (pieces, 2) elements of each column.
    """

    columns = ("masked", "text")

    def __init__(
        self, documents: Examples, context: int, end_of_text: int, mask: int, seed: int | None = None, epoch: int = 0
    ) -> None:
        """
        Args:
            context: tokens of the longest piece.
            mask: the id of the mask; random tokens are below it.
            seed: None: for validation, the same pieces and masks in all epochs.
        """
        self.pieces = cut_documents(context, end_of_text, documents, seed, epoch)
        self._mask = mask
        self._seed = [FIXED_SEED, 0] if seed is None else [seed, epoch]
        of_text = self.pieces.lengths[:, 0]
        masked = np.maximum(1, np.rint(SHARE * of_text)).astype(of_text.dtype)
        self.lengths = np.stack([masked, of_text], axis=1)

    def __len__(self) -> int:
        return len(self.lengths)

    def get(self, column: str, row: int) -> np.ndarray:
        return self.pieces.get("input", row) if column == "text" else self.masked(row).labels

    def masked(self, row: int) -> MaskedPiece:
        """The piece with its masks."""
        tokens = np.array(self.pieces.get("input", row))
        random = np.random.default_rng([*self._seed, row])
        first = int(self.pieces.pieces.start[row] == 0 and len(tokens) > 1)
        places = first + np.sort(random.choice(len(tokens) - first, int(self.lengths[row, 0]), replace=False))
        labels = tokens[places]
        fate = random.random(len(places))
        others = random.integers(0, self._mask, len(places))
        changed = np.where(fate < MASKED, self._mask, np.where(fate < MASKED + RANDOM, others, labels))
        # The mask may be beyond the tokens' own type.
        tokens = tokens.astype(np.int64)
        tokens[places] = changed
        return MaskedPiece(tokens, places, labels)


@dataclass(frozen=True)
class MaskedBatch:
    """One micro-batch of packed pieces, then filler. Letters: N tokens, M masked tokens, P at least M.

    Attributes:
        tokens: (N,) ids. layout: of the pieces; no piece sees another.
        places: (P,) rows of the masked tokens, then filler. labels: (M,) the masked tokens.
        num_tokens: of the real pieces.
    """

    tokens: Tensor
    layout: Layout
    places: Tensor
    labels: Tensor
    num_tokens: int

    def to(self, device: torch.device) -> "MaskedBatch":
        """Returns the batch on another device, without waiting for the copy."""
        if device.type == "cpu":
            return self
        tensors = (self.tokens, self.places, self.labels)
        tokens, places, labels = (x.pin_memory().to(device, non_blocking=True) for x in tensors)
        return MaskedBatch(tokens, self.layout.to(device), places, labels, self.num_tokens)

    @property
    def padding_share(self) -> float:
        """The share of padding and filler in the padded grid, on which attention works."""
        return 1.0 - self.num_tokens / self.layout.token_of_cell.numel()

    @property
    def in_words(self) -> str:
        return f"{self.num_tokens:,} tokens"


def collate_masked(pieces: Any, rows: Sequence[int] | np.ndarray) -> MaskedBatch:
    """Packs the `MaskedPieces` of these rows."""
    masked = [pieces.masked(row) for row in rows]
    lengths = [len(piece.tokens) for piece in masked]
    (behind,) = filler([lengths])
    tokens, layout = pack([piece.tokens for piece in masked], behind)
    starts = np.cumsum(lengths) - lengths
    places = np.concatenate([start + piece.places for start, piece in zip(starts, masked, strict=True)])
    labels = np.concatenate([piece.labels for piece in masked]).astype(np.int64)
    places = np.pad(places.astype(np.int64), (0, -len(places) % ROW_MULTIPLE))  # so that shapes repeat
    return MaskedBatch(tokens, layout, torch.from_numpy(places), torch.from_numpy(labels), sum(lengths))
