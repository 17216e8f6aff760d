"""Examples of a run's own data, in batches, for looking into its model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from transloom.pipeline.data.batches import BatchConfig, plan_epoch
from transloom.pipeline.data.pairs import PairBatch
from transloom.pipeline.errors import UserError
from transloom.pipeline.tasks.task import Examples, Task

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Sample:
    """Some examples of a split.

    Attributes:
        examples: all that the model can read. rows: the chosen ones among them.
    """

    task: Task
    examples: Examples
    rows: np.ndarray

    def batches(self, tokens: int = BATCH_TOKENS) -> Iterator[tuple[Any, int]]:
        """Yields batches of like lengths, always the same ones, each with its number of examples, which stand before
        its filler."""
        lengths = self.examples.lengths[self.rows]
        size = max(tokens, int(lengths.max()))
        for chosen in plan_epoch(lengths, BatchConfig(size, size), seed=0, epoch=0):
            yield self.task.collate(self.examples, self.rows[chosen]), len(chosen)


def take_sample(task: Task, split: str, count: int, longest: int | None = None, least_share: float = 0.0) -> Sample:
    """At most `count` examples, evenly spread over a split; of texts, pieces as the model reads them.

    Args:
        longest: tokens of the longest example to take; None: any number.
        least_share: shorter examples than this share of the longest one are left out.
    Raises:
        UserError: there are no examples, or all are longer.
    """
    examples = task.examples(split)
    if examples.columns != ("source", "target"):  # an epoch of pairs is mixed and weighted for training
        examples = task.epoch(examples, 0, 0)
    if not len(examples):
        raise UserError(f"{split}: has no examples; set split= to one that has")
    sizes = examples.lengths.max(axis=1)
    rows = np.flatnonzero(sizes <= (sizes.max() if longest is None else longest))
    if len(rows):
        rows = rows[sizes[rows] >= least_share * sizes[rows].max()]
    else:
        raise UserError(f"{split}: all examples are longer than {longest:,} tokens, too long to look at all weights")
    return Sample(task, examples, rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)])


@torch.inference_mode()
def loss_of(objective: Any, batches: list[Any]) -> float:
    """The mean loss of these batches, in nats a predicted token, or example. The objective is in evaluation mode."""
    sums = [objective(batch) for batch in batches]
    return sum(float(loss.total) for loss in sums) / sum(loss.num_tokens for loss in sums)


def plain_objective(task: Task, model: Any) -> Any:
    """The task's objective in evaluation mode, without label smoothing."""
    objective: Any = task.objective(model).eval()
    objective.label_smoothing = 0.0
    return objective


def is_pairs(batch: Any) -> bool:
    """Whether a batch has two sides."""
    return isinstance(batch, PairBatch)
