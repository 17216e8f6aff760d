"""The types that a task consists of. Each task is a file beside this file, which makes a `Task`."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import nn

from transloom.pipeline.progress import MapTasks, Progress


@dataclass(frozen=True)
class Metric:
    """A kind of score that models are compared by.

    Attributes:
        name: in files and in the tracker's keys, such as validation/<name>.
        title: for people.
        higher_is_better: False where lower values are better.
        digits: shown behind the point.
        limits: the lowest and the highest possible value; None where there is no highest.
        trivial: the value of an untrained model; scores no better than this do not tell models apart. None: not known.
    """

    name: str
    title: str
    higher_is_better: bool = True
    digits: int = 2
    limits: tuple[float, float] | None = None
    trivial: float | None = None

    def best(self, records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """The first record with the best value of this metric; None without records."""
        return min(records, key=lambda record: self.sort_key(record[self.name]), default=None)

    def sort_key(self, value: float) -> float:
        """A key that sorts values from the best to the worst; NaN is the worst."""
        if math.isnan(value):
            return math.inf
        return -value if self.higher_is_better else value

    def is_better(self, value: float, other: float) -> bool:
        """Whether a value is better than another; equal values are not."""
        return self.sort_key(value) < self.sort_key(other)

    def are_trivial(self, values: Iterable[float]) -> bool:
        """Whether all values are worse than that of an untrained model."""
        return self.trivial is not None and all(self.is_better(self.trivial, value) for value in values)

    def shown(self, value: float) -> str:
        """The value, for people: 27.31."""
        return f"{value:.{self.digits}f}"


@dataclass(frozen=True)
class Score:
    """One number of an evaluation.

    Attributes:
        signature: the way of computing the score, such as sacreBLEU's signature; empty where there is only one way.
        details: a line for people, such as BLEU's n-gram precisions.
        half_width: of the 95 % confidence interval, if asked for.
        length_ratio: of hypotheses to references, in words, if the score has a length ratio.
    """

    name: str
    value: float
    signature: str = ""
    details: str = ""
    half_width: float | None = None
    length_ratio: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """The quality of a model on a split.

    Attributes:
        loss: in nats a predicted token (or example), without smoothing; None where it was not computed.
        scores: by the metrics' names, the task's `selects` among them.
        num_examples: that were evaluated.
        outputs: the model's output for each example, one line each; empty where a task makes no text.
        samples: columns of a small table for people.
        baselines: values of `selects` for simple models on the same split, by the models' names.
        pictures: by name, functions that draw a picture of the evaluation into a file.
    """

    loss: float | None
    scores: Mapping[str, Score]
    num_examples: int
    outputs: Sequence[str] = ()
    samples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, Callable[[Path], object]] = field(default_factory=dict)

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
        """(examples, columns) number of elements."""
        ...

    def __len__(self) -> int: ...

    def get(self, column: str, row: int) -> np.ndarray:
        """The elements of an example's column."""
        ...


class Batch(Protocol):
    """One micro-batch: a task's own frozen dataclass of tensors."""

    def to(self, device: torch.device) -> Self:
        """Returns the batch on another device, without waiting for the copy."""
        ...

    @property
    def padding_share(self) -> float:
        """The share of padding and filler in the computation."""
        ...

    @property
    def in_words(self) -> str:
        """The batch's size, for people: 2,048 tokens."""
        ...


@dataclass(frozen=True)
class Scoring:
    """The settings by which a run's model is evaluated.

    Attributes:
        key: the settings that the results depend on: results of another key have a folder of their own.
        folder: the beginning of the results' folder's name.
        label: a short name for metrics and tags. in_words: for people; empty where there is only one way.
        settings: for the result's file.
        is_own: whether the run began with these settings.
    """

    key: Mapping[str, Any]
    folder: str
    label: str
    in_words: str
    settings: Mapping[str, Any]
    is_own: bool


@dataclass(frozen=True)
class Task:
    """The functions that training needs of a task, independent of each other.

    Attributes:
        selects: the metric that patience, the average of the best, sweeps, figures and MLflow's list go by.
        loss_column: the column whose number of elements in a step divides the step's summed loss.
        tokenizer: SHA-256 of the tokenizer of the examples; empty without a tokenizer.
        model: makes a new model with random weights, from torch's global generator. It has the attributes config (with
            d_model), output_weight and packed_projection, as those of `build_model`.
        objective: model to the module whose forward(batch) returns a `LossSum`.
        examples: the examples of a split.
        epoch: (examples, seed, epoch) to the epoch's examples, in most tasks unchanged: a pure function.
        collate: (examples, rows) to a batch: a pure function, the same in every process.
        validate: evaluates a model in evaluation mode on the validation set; in a process group each rank does its
            share, and gets the whole result.
        evaluate: (model folder, split, map_tasks, progress) to the full evaluation, shared out as tasks that may run
            in other processes.
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
