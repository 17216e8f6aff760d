"""Packs sequences of token ids into one row: the core of every batch of text."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from transloom.model.packing import Layout
from transloom.pipeline.data.tokenizer import PAD_ID

# A batch's tokens and sentences are filled up to multiples of these numbers, so that shapes repeat: libraries prepare a
# kernel for every new shape, which took 10 % of a training step on a CPU. Attention computes as much for a filler
# sentence as for a real one, so fewer than MANY_SENTENCES are not filled up to a multiple.
ROW_MULTIPLE, SENTENCE_MULTIPLE, MANY_SENTENCES = 64, 8, 32


def pack(sentences: list[np.ndarray], filler: list[int]) -> tuple[Tensor, Layout]:
    """The sentences' ids in one row, (tokens,), with `filler` sentences of <pad> behind them, and their layout."""
    row = np.concatenate([*sentences, np.full(sum(filler), PAD_ID)]).astype(np.int64)
    return torch.from_numpy(row), Layout.of(torch.tensor([*(len(x) for x in sentences), *filler]))


def filler(lengths: Sequence[list[int]]) -> list[list[int]]:
    """Lengths of the filler sentences of a batch, equally many in each column, none longer than the real sentences.

    Args:
        lengths: of the real sentences, equally many for each column.
    """
    multiple = SENTENCE_MULTIPLE if len(lengths[0]) >= MANY_SENTENCES else 1
    count = -len(lengths[0]) % multiple
    while True:
        tokens = [count + -(sum(real) + count) % ROW_MULTIPLE for real in lengths]
        # Filler sentences may have 2 tokens: of single tokens up to 64 sentences would be needed.
        if all(needed <= count * max(2, *real) for needed, real in zip(tokens, lengths, strict=True)):
            return [_share_out(needed, count) for needed in tokens]
        count += multiple


def _share_out(tokens: int, count: int) -> list[int]:
    return [tokens // count + (i < tokens % count) for i in range(count)]
