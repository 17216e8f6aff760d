"""What a task is made of: types alone. A task is one file beside this one, which makes one `Task`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Metric:
    """A kind of score that models are compared by.

    Attributes:
        name: in files and in the tracker's keys, such as validation/<name>.
        title: for people.
        higher_is_better: else the lower the better.
        digits: shown behind the point.
    """

    name: str
    title: str
    higher_is_better: bool = True
    digits: int = 2

    def best(self, records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """The first of the records whose value of this metric none betters; None of none."""
        sign = 1 if self.higher_is_better else -1
        return max(records, key=lambda record: sign * record[self.name], default=None)

    def sort_key(self, value: float) -> float:
        """Sorts values from the best to the worst."""
        return -value if self.higher_is_better else value

    def is_better(self, value: float, other: float) -> bool:
        """Whether a value betters another one; equal ones do not."""
        return self.sort_key(value) < self.sort_key(other)

    def shown(self, value: float) -> str:
        """The value as people read it: 27.31."""
        return f"{value:.{self.digits}f}"


@dataclass(frozen=True)
class Score:
    """One number of an evaluation.

    Attributes:
        signature: how the number was counted, such as sacreBLEU's signature; empty where there is only one way.
        details: a line for people, such as BLEU's n-gram precisions.
        half_width: of the 95 % confidence interval, where it was asked for.
        length_ratio: of hypotheses to references, in words, where the score has one.
    """

    name: str
    value: float
    signature: str = ""
    details: str = ""
    half_width: float | None = None
    length_ratio: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on one split.

    Attributes:
        loss: in nats a predicted token (or example), without smoothing; None where it was not counted.
        scores: by the metrics' names; the task's `selects` is among them.
        outputs: what the model made of each example, one line each; none where a task makes no text.
        samples: columns of a small table for people.
    """

    loss: float | None
    scores: Mapping[str, Score]
    outputs: Sequence[str] = ()
    samples: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def values(self) -> dict[str, float]:
        """The loss and each score's value, by name."""
        loss = {} if self.loss is None else {"loss": self.loss}
        return loss | {name: score.value for name, score in self.scores.items()}


class Examples(Protocol):
    """The examples of one split: named columns of arrays of any length."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def lengths(self) -> np.ndarray:
        """(examples, columns) elements of each."""
        ...

    def __len__(self) -> int: ...

    def get(self, column: str, row: int) -> np.ndarray:
        """The elements of a column of one example."""
        ...


class Batch(Protocol):
    """One micro-batch: a task's own frozen dataclass of tensors."""

    def to(self, device: torch.device) -> Self:
        """The same on another device; does not wait for it."""
        ...

    @property
    def padding_share(self) -> float:
        """What part of the computation is padding or filler."""
        ...


@dataclass(frozen=True)
class Task:
    """What training asks of a task: functions, each of which needs nothing of the others.

    Attributes:
        selects: the metric that patience, the average of the best, sweeps, figures and MLflow's list go by.
        loss_column: a step's loss is a sum, divided by the number of elements of this column in the step.
        model: a new model with random weights, from torch's global generator.
        objective: of a model the module whose forward(batch) returns a `LossSum`.
        examples: the examples of a split.
        epoch: of the examples (examples, seed, epoch) those that an epoch has: a pure function. Most tasks: the same.
        collate: (examples, rows) to a batch; pure, and the same in whatever process.
        validate: a model in evaluation mode, on the validation set; under a process group each rank does its share, and
            gets the whole result.
        describe: (examples, row) to texts by column, for the files of skipped batches.
        metadata: what a model folder says beside shape and steps.
    """

    name: str
    selects: Metric
    loss_column: str
    model: Callable[[], Any]
    objective: Callable[[Any], nn.Module]
    examples: Callable[[str], Examples]
    collate: Callable[[Examples, Sequence[int] | np.ndarray], Batch]
    validate: Callable[[Any], Evaluation]
    epoch: Callable[[Examples, int, int], Examples] = lambda examples, seed, epoch: examples
    describe: Callable[[Examples, int], Mapping[str, str]] = lambda examples, row: {}
    metadata: Mapping[str, Any] = field(default_factory=dict)
