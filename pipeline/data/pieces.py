"""Cuts documents into the pieces that a language model reads at once: a pure function of (lengths, context, seed,
epoch), never of the number of workers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from transloom.model.packing import Layout
from transloom.pipeline.data.packing import filler, pack
from transloom.pipeline.tasks.task import Examples


class Pieces(NamedTuple):
    """Pieces of documents, in the order of the documents. Piece i predicts the tokens from `start[i]` to before
    `start[i] + length[i]` of document `document[i]`; see `inputs_and_labels`.

    Attributes:
        document, start, length: (pieces,) int32.
    """

    document: np.ndarray
    start: np.ndarray
    length: np.ndarray


def pieces_of(lengths: np.ndarray, context: int, seed: int | None = None, epoch: int = 0) -> Pieces:
    """Cuts documents into pieces of at most `context` predicted tokens. Every token stands in exactly one piece.

    A document that fits is one piece. The first piece of a longer document has from 1 to `context` tokens, all lengths
    equally likely, chosen anew in each epoch. Later pieces have `context` tokens, and the last has the rest. So in each
    epoch other tokens have a short context.

    Args:
        lengths: (documents,) tokens of each document, its end of text included.
        seed: None: every first piece has `context` tokens in all epochs, as for validation.
    """
    if context < 1:
        raise ValueError(f"context: must be at least 1, not {context}")
    lengths = np.asarray(lengths, dtype=np.int64)
    is_long = lengths > context
    first = np.minimum(lengths, context)
    if seed is not None:
        first[is_long] = np.random.default_rng([seed, epoch]).integers(1, context + 1, size=int(is_long.sum()))
    counts = (lengths > 0) + (lengths - first + context - 1) // context
    document = np.repeat(np.arange(len(lengths), dtype=np.int32), counts)
    # The number of each piece within its document.
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = np.where(number == 0, 0, first[document] + (number - 1) * context)
    end = np.minimum(first[document] + number * context, lengths[document])
    return Pieces(document, start.astype(np.int32), (end - start).astype(np.int32))


def inputs_and_labels(tokens: np.ndarray, start: int, length: int, end_of_text: int) -> tuple[np.ndarray, np.ndarray]:
    """The inputs and labels of one piece, (length,) each; labels[i] is predicted after inputs[: i + 1].

    The labels are tokens[start : start + length]. The inputs are the tokens one place before: the first is the token
    before `start` or, at the document's beginning, the end of text. A document [a, b, end] in one piece has the inputs
    [end, a, b] and the labels [a, b, end].

    Args:
        tokens: of the document, its end of text included.
    """
    labels = tokens[start : start + length]
    before = tokens[start - 1] if start else end_of_text
    return np.concatenate([np.array([before], dtype=tokens.dtype), labels[:-1]]), labels


class TextPieces:
    """Pieces of documents as the examples of an epoch, with a single column, text: the tokens that a piece predicts.

    Attributes:
        lengths: (pieces, 1) tokens that each piece predicts.
    """

    columns = ("text",)

    def __init__(self, documents: Examples, pieces: Pieces, end_of_text: int) -> None:
        self.pieces = pieces
        self.lengths = pieces.length[:, None]
        self._documents, self._end_of_text = documents, end_of_text
        (self._column,) = documents.columns

    def __len__(self) -> int:
        return len(self.pieces.length)

    def get(self, column: str, row: int) -> np.ndarray:
        """(length,) ids of "text", or of "input": the model's inputs, which are the tokens one place before."""
        document, start, length = (int(part[row]) for part in self.pieces)
        inputs, labels = inputs_and_labels(
            self._documents.get(self._column, document), start, length, self._end_of_text
        )
        return inputs if column == "input" else labels


def cut_documents(
    context: int, end_of_text: int, documents: Examples, seed: int | None = None, epoch: int = 0
) -> TextPieces:
    """The pieces of an epoch, of at most `context` predicted tokens; see `pieces_of`."""
    return TextPieces(documents, pieces_of(documents.lengths[:, 0], context, seed, epoch), end_of_text)


@dataclass(frozen=True)
class TextBatch:
    """One micro-batch of packed pieces, then filler. Letters: N tokens, M of them real.

    Attributes:
        tokens: (N,) ids that the model reads.
        layout: of the pieces; no piece sees another piece.
        labels: (M,) ids to predict, of the real tokens.
    """

    tokens: Tensor
    layout: Layout
    labels: Tensor

    def to(self, device: torch.device) -> "TextBatch":
        """Returns the batch on another device, without waiting for the copy."""
        if device.type == "cpu":
            return self
        # A copy runs beside the computation only from pinned memory.
        tokens, labels = (x.pin_memory().to(device, non_blocking=True) for x in (self.tokens, self.labels))
        return TextBatch(tokens, self.layout.to(device), labels)

    @property
    def padding_share(self) -> float:
        """The share of padding and filler in the padded grid, on which attention works."""
        return 1.0 - self.labels.numel() / self.layout.token_of_cell.numel()

    @property
    def in_words(self) -> str:
        return f"{len(self.labels):,} tokens"


def collate_pieces(pieces: Examples, rows: Sequence[int] | np.ndarray) -> TextBatch:
    """Packs the `TextPieces` of these rows."""
    labels = [pieces.get("text", row) for row in rows]
    (behind,) = filler([[len(x) for x in labels]])
    tokens, layout = pack([pieces.get("input", row) for row in rows], behind)
    return TextBatch(tokens, layout, torch.from_numpy(np.concatenate(labels).astype(np.int64)))
