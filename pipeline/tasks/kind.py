"""What the pipeline asks of every task, in one type."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.progress import MapTasks, Progress
from transloom.pipeline.tasks.task import Metric, Scoring, Task


@dataclass(frozen=True)
class TaskKind:
    """A task before there is data: what prepares its corpus, and what makes a run's `Task`. Every task's file has one.

    Attributes:
        metric: the corpus's settings to the metric that chooses among runs.
        token_columns: the columns of the examples whose tokens a training counts; the last has the predicted tokens.
        with_local_corpus: (corpus, folder, progress) to the corpus with each URL replaced by the path of a copy below
            the folder. Raises UserError, naming the setting, if a file can't be reached.
        refuse_wrong_corpus: raises UserError if files of the corpus are missing or have another format, as far as that
            takes no time.
        prepare: (config, folder, map_tasks, progress, only_find) to the corpus, the tokenizer and the shards below the
            folder; see `pipeline.data.prepare.prepare`. The corpus's files are local.
        scoring: (config of the run, config that the run began with) to the way of evaluating.
        make: (config, the folder of each prepared stage) to the run's task.
        flops_columns: the model's configuration to the columns whose tokens `training_flops` takes, in its order; None:
            `token_columns`.
        loss_unit: what the losses are of; None: a token of the last of `token_columns`.
        baselines: the corpus manifest's counts to values of the metric for simple models, by split and name.
    """

    metric: Callable[[Any], Metric]
    token_columns: tuple[str, ...]
    with_local_corpus: Callable[[Any, Path, Progress], Any]
    refuse_wrong_corpus: Callable[[Any], None]
    prepare: Callable[[Any, Path, MapTasks, Progress, bool], Prepared]
    scoring: Callable[[Any, Any], Scoring]
    make: Callable[[Any, Callable[[str], Path]], Task]
    flops_columns: Callable[[Any], tuple[str, ...]] | None = None
    loss_unit: str | None = None
    baselines: Callable[[Mapping[str, Any]], Mapping[str, Mapping[str, float]]] = lambda counts: counts.get(
        "baselines", {}
    )


def only_scoring(folder: str) -> Callable[[Any, Any], Scoring]:
    """The `scoring` of a task that has one way of evaluating.

    Args:
        folder: the results' folder.
    """
    return lambda config, own: Scoring(key={}, folder=folder, label="", in_words="", settings={}, is_own=True)
