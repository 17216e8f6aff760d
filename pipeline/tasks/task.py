"""What a task is made of: types alone. A task is one file beside this one, which makes one `Task`."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import nn

from pipeline.progress import MapTasks, Progress


@dataclass(frozen=True)
class Metric:
    """A kind of score that models are compared by.

    Attributes:
        name: in files and in the tracker's keys, such as validation/<name>.
        title: for people.
        higher_is_better: else the lower the better.
        digits: shown behind the point.
        limits: the lowest and the highest value that there can be; None where there is no highest.
        trivial: of a model that learned nothing; scores that are no better tell no models apart. None: not known.
    """

    name: str
    title: str
    higher_is_better: bool = True
    digits: int = 2
    limits: tuple[float, float] | None = None
    trivial: float | None = None

    def best(self, records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """The first of the records whose value of this metric none betters; None of none."""
        return min(records, key=lambda record: self.sort_key(record[self.name]), default=None)

    def sort_key(self, value: float) -> float:
        """Sorts values from the best to the worst; what is no number is the worst."""
        if math.isnan(value):
            return math.inf
        return -value if self.higher_is_better else value

    def is_better(self, value: float, other: float) -> bool:
        """Whether a value betters another one; equal ones do not."""
        return self.sort_key(value) < self.sort_key(other)

    def are_trivial(self, values: Iterable[float]) -> bool:
        """Whether all of the values are worse than that of a model that learned nothing."""
        return self.trivial is not None and all(self.is_better(self.trivial, value) for value in values)

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
        num_examples: that were evaluated.
        outputs: what the model made of each example, one line each; none where a task makes no text.
        samples: columns of a small table for people.
        baselines: what simple models come to on the same split, by their names; values of `selects`.
    """

    loss: float | None
    scores: Mapping[str, Score]
    num_examples: int
    outputs: Sequence[str] = ()
    samples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)

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

    @property
    def in_words(self) -> str:
        """The batch's size, for people: 2,048 tokens."""
        ...


@dataclass(frozen=True)
class Scoring:
    """How a run's model is evaluated, beside what it was trained with.

    Attributes:
        key: what the results depend on: results of another key have a folder of their own.
        folder: the beginning of that folder's name.
        label: a short name for metrics and tags. in_words: for people; empty where there is only one way.
        settings: for the result's file.
        is_own: whether the run was begun with it.
    """

    key: Mapping[str, Any]
    folder: str
    label: str
    in_words: str
    settings: Mapping[str, Any]
    is_own: bool


@dataclass(frozen=True)
class Task:
    """What training asks of a task: functions, each of which needs nothing of the others.

    Attributes:
        selects: the metric that patience, the average of the best, sweeps, figures and MLflow's list go by.
        loss_column: a step's loss is a sum, divided by the number of elements of this column in the step.
        tokenizer: SHA-256 of what made the examples' tokens; empty where there are none.
        model: a new model with random weights, from torch's global generator.
        objective: of a model the module whose forward(batch) returns a `LossSum`.
        examples: the examples of a split.
        epoch: of the examples (examples, seed, epoch) those that an epoch has: a pure function. Most tasks: the same.
        collate: (examples, rows) to a batch; pure, and the same in whatever process.
        validate: a model in evaluation mode, on the validation set; under a process group each rank does its share, and
            gets the whole result.
        evaluate: of (model folder, split, map_tasks, progress) the evaluation in full, shared out as tasks that may run
            elsewhere.
        text: (column, elements) to text, for the files of skipped batches; None where a column is no text.
    """

    selects: Metric
    loss_column: str
    tokenizer: str
    model: Callable[[], Any]
    objective: Callable[[Any], nn.Module]
    examples: Callable[[str], Examples]
    collate: Callable[[Examples, Sequence[int] | np.ndarray], Batch]
    validate: Callable[[Any], Evaluation]
    evaluate: Callable[[Path, str, MapTasks, Progress], Evaluation]
    epoch: Callable[[Examples, int, int], Examples] = lambda examples, seed, epoch: examples
    text: Callable[[str, Sequence[int]], str] | None = None
