"""Pairs: a sentence and its translation, as text, as token ids, and as a packed batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from transloom.model.packing import Layout
from transloom.pipeline.data.batches import BatchConfig, Step, iterate_steps
from transloom.pipeline.data.packing import filler, pack
from transloom.pipeline.data.shards import SIDES, Columns, open_shards
from transloom.pipeline.data.tokenizer import BOS_ID
from transloom.pipeline.tasks.task import Examples


class SentencePair(NamedTuple):
    """One sentence in the source language and its translation, as text."""

    source: str
    target: str


@dataclass(frozen=True)
class PairBatch:
    """One micro-batch of packed pairs, then sentences of <pad> as filler. Letters: S source tokens, T target tokens, M
    real target tokens.

    Attributes:
        source: (S,) ids, each sentence ending in </s>.
        target: (T,) ids that the decoder reads: <s>, then all ids of the sentence but the last.
        labels: (M,) ids to predict: each sentence with its </s>, without filler.
        source_tokens: the number of real source tokens.
    """

    source: Tensor
    source_layout: Layout
    target: Tensor
    target_layout: Layout
    labels: Tensor
    source_tokens: int

    def to(self, device: torch.device) -> "PairBatch":
        """Returns the batch on another device, without waiting for the copy."""
        if device.type == "cpu":
            return self
        # A copy runs beside the computation only from pinned memory.
        source, target, labels = (
            x.pin_memory().to(device, non_blocking=True) for x in (self.source, self.target, self.labels)
        )
        source_layout, target_layout = self.source_layout.to(device), self.target_layout.to(device)
        return PairBatch(source, source_layout, target, target_layout, labels, self.source_tokens)

    @property
    def padding_share(self) -> float:
        """The share of padding and filler in both sides' padded grids, on which attention works."""
        cells = self.source_layout.token_of_cell.numel() + self.target_layout.token_of_cell.numel()
        return 1.0 - (self.source_tokens + self.labels.numel()) / cells

    @property
    def in_words(self) -> str:
        return f"{self.source_tokens:,} source and {len(self.labels):,} target tokens"


def collate_pairs(pairs: Examples, rows: Sequence[int] | np.ndarray, start: int = BOS_ID) -> PairBatch:
    """Packs the pairs of these rows.

    Args:
        start: the id that the decoder reads first.
    """
    sources = [pairs.get("source", row) for row in rows]
    labels = [pairs.get("target", row) for row in rows]
    source_filler, target_filler = filler([[len(x) for x in sources], [len(x) for x in labels]])
    source, source_layout = pack(sources, source_filler)
    label_row, target_layout = pack(labels, target_filler)
    target = label_row.roll(1)  # across sentences, too: the next line mends their first tokens
    target[target_layout.positions == 0] = start
    label_row = label_row[: sum(len(x) for x in labels)]
    return PairBatch(source, source_layout, target, target_layout, label_row, sum(len(x) for x in sources))


def pair_steps(pairs: Examples, config: BatchConfig, seed: int, **place: Any) -> Iterator[Step]:
    """`iterate_steps` of pairs; `place` are the other arguments of `iterate_steps`, by name."""
    return iterate_steps(pairs, collate_pairs, "target", config, seed, **place)


def open_pairs(folder: Path, split: str) -> Columns:
    """The tokenised pairs of a split: see `open_shards`."""
    return open_shards(folder, split, SIDES)
