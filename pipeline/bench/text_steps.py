"""The steps of a language model's bench: ours packs whole pieces of documents; the others read dense windows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from transloom.model.config import DecoderConfig
from transloom.pipeline.bench.task import Task
from transloom.pipeline.data.batches import Step, iterate_steps
from transloom.pipeline.data.document_shards import COLUMN
from transloom.pipeline.data.pieces import TextPieces, collate_pieces, cut_documents
from transloom.pipeline.data.shards import open_shards
from transloom.pipeline.errors import UserError


def text_steps(
    task: Task, *, rank: int = 0, world_size: int = 1, collate: Callable[..., Any] = collate_pieces
) -> Iterator[Step]:
    """The steps of a run of ours, or its pieces of documents as other batches."""
    cut = partial(cut_documents, context_of(task), task.end_of_text)
    documents = open_shards(Path(task.shards), "train", (COLUMN,))
    return iterate_steps(
        documents, collate, "text", task.batch, task.seed, rank=rank, world_size=world_size, of_epoch=cut
    )


def context_of(task: Task) -> int:
    """Tokens of the longest text."""
    assert isinstance(task.model, DecoderConfig)
    return task.model.max_positions


@dataclass(frozen=True)
class DenseBatch:
    """Windows of a stream of documents: what the model reads and what it predicts, (B, L) ids each."""

    tokens: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "DenseBatch":
        """The same on another device; does not wait for it."""
        if device.type == "cpu":
            return self
        return DenseBatch(*[x.pin_memory().to(device, non_blocking=True) for x in (self.tokens, self.labels)])


@dataclass(frozen=True)
class DenseStep:
    """One optimizer step."""

    batches: list[DenseBatch]
    tokens: dict[str, int]

    @property
    def loss_count(self) -> int:
        return self.tokens["text"]


def dense_steps(task: Task) -> Iterator[DenseStep]:
    """The tokens of `text_steps`, one stream in the same order, cut into windows as long as the context.

    A step has the whole windows that are there by the end of the same step of ours: since the beginning never a window
    less than ours has read. There is no padding; a document sees the end of the one before it in its window.
    """
    context = context_of(task)
    left = np.empty((2, 0), dtype=np.int64)
    for step in text_steps(task, collate=_in_a_row):
        stream = np.concatenate([left, *cast(list[np.ndarray], step.batches)], axis=1)
        windows = stream.shape[1] // context
        whole, left = stream[:, : windows * context], stream[:, windows * context :]
        if not windows:
            raise UserError(
                f"batch.tokens: a step of {stream.shape[1]:,} tokens has no window of model.max_positions={context:,}; "
                "take a larger corpus or step"
            )
        tokens, labels = torch.from_numpy(whole).view(2, windows, context)
        parts = min(windows, task.batch.micro_batches)
        micro = zip(tokens.tensor_split(parts), labels.tensor_split(parts), strict=True)
        yield DenseStep([DenseBatch(*pair) for pair in micro], {"text": windows * context})


def _in_a_row(pieces: TextPieces, rows: np.ndarray) -> np.ndarray:
    """(2, tokens): what is read and what is predicted of these pieces, one behind the other."""
    sides = [[pieces.get(side, row) for row in rows] for side in ("input", "text")]
    return np.stack([np.concatenate(side) for side in sides]).astype(np.int64)
