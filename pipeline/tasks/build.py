"""The tasks by name. Code that prepares, trains, sweeps or draws imports this module and no task."""

from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transloom.pipeline.progress import MapTasks, Progress, no_progress
from transloom.pipeline.tasks.kind import TaskKind
from transloom.pipeline.tasks.task import Metric, Scoring, Task

if TYPE_CHECKING:
    from transloom.pipeline.data.prepare import Prepared


class TaskName(Enum):
    """The task that a model learns."""

    translation = "translation"
    language_model = "language_model"
    classification = "classification"
    masked_language_model = "masked_language_model"
    prompt_response = "prompt_response"


def kind_of(task: TaskName) -> TaskKind:
    """What a task's file says of it."""
    match task:
        case TaskName.translation:
            from transloom.pipeline.tasks.translation import TRANSLATION

            return TRANSLATION
        case TaskName.language_model:
            from transloom.pipeline.tasks.language_model import LANGUAGE_MODEL

            return LANGUAGE_MODEL
        case TaskName.classification:
            from transloom.pipeline.tasks.classification import CLASSIFICATION

            return CLASSIFICATION
        case TaskName.masked_language_model:
            from transloom.pipeline.tasks.masked_language_model import MASKED_LANGUAGE_MODEL

            return MASKED_LANGUAGE_MODEL
        case TaskName.prompt_response:
            from transloom.pipeline.tasks.prompt_response import PROMPT_RESPONSE

            return PROMPT_RESPONSE


def selecting_metric(task: TaskName, corpus: Any = None) -> Metric:
    """The metric that chooses among runs of a task.

    Args:
        corpus: its settings, which name the metric of prompts and responses.
    """
    return kind_of(task).metric(corpus)


def token_columns(task: TaskName) -> tuple[str, ...]:
    """The columns of a task's examples whose tokens a training counts; the last has the predicted tokens."""
    return kind_of(task).token_columns


def flops_columns(task: TaskName, model: Any) -> tuple[str, ...]:
    """The columns whose tokens `training_flops` takes, in its order.

    Args:
        model: its configuration.
    """
    kind = kind_of(task)
    return kind.flops_columns(model) if kind.flops_columns else kind.token_columns


def loss_unit(task: TaskName) -> str | None:
    """What a task's losses are of; None: a token of the last of `token_columns`."""
    return kind_of(task).loss_unit


def corpus_baselines(task: TaskName, counts: Mapping[str, Any]) -> Mapping[str, Mapping[str, float]]:
    """Values of the selecting metric for simple models that the preparation has counted, by split and name.

    Args:
        counts: of the corpus's manifest.
    """
    return kind_of(task).baselines(counts)


def with_local_corpus(config: Any, folder: Path, progress: Progress = no_progress) -> Any:
    """The corpus with each URL replaced by the path of a copy below `folder`.

    Raises:
        UserError: a file can't be reached; names the setting.
    """
    return kind_of(config.task).with_local_corpus(config.corpus, folder, progress)


def refuse_wrong_corpus(config: Any) -> None:
    """Checks the files of a corpus before its preparation, as far as that takes no time.

    Raises:
        UserError: a file is missing, or has another format than expected.
    """
    kind_of(config.task).refuse_wrong_corpus(config.corpus)


def prepare_data(
    config: Any, folder: Path, map_tasks: MapTasks = map, progress: Progress = no_progress, only_find: bool = False
) -> "Prepared":
    """The corpus, the tokenizer and the shards of a configuration, below an output folder; see
    `pipeline.data.prepare.prepare`.

    Args:
        config: with a corpus of local files.
    """
    return kind_of(config.task).prepare(config, folder, map_tasks, progress, only_find)


def scoring(config: Any, own: Any) -> Scoring:
    """How the model of a run is evaluated.

    Args:
        config: with the run's settings. own: with the settings that the run began with.
    """
    return kind_of(config.task).scoring(config, own)


def make_task(config: Any, folder_of: Callable[[str], Path]) -> Task:
    """The task of a run.

    Args:
        config: the run's, with the sections that the task reads.
        folder_of: the folder of each prepared stage.
    """
    return kind_of(config.task).make(config, folder_of)
