"""The tasks by name. What trains, sweeps or draws imports no task, but asks here."""

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from pipeline.tasks.task import Metric, Scoring, Task


class TaskName(Enum):
    """What is learned."""

    translation = "translation"


def selecting_metric(task: TaskName) -> Metric:
    """The metric that runs of a task are chosen by."""
    match task:
        case TaskName.translation:
            from pipeline.tasks.translation import BLEU

            return BLEU


def scoring(config: Any, own: Any) -> Scoring:
    """How the model of a run is evaluated.

    Args:
        config: with the run's settings. own: with those that it was begun with.
    """
    match config.task:
        case TaskName.translation:
            from pipeline.evaluate.tokenizers import tokenizer_for
            from pipeline.tasks.translation import translation_scoring

            by = [tokenizer_for(one.corpus.target_language, one.evaluate) for one in (config, own)]
            return translation_scoring(config.decode, by[0], own.decode, by[1])
        case _:
            raise ValueError(f"task: {config.task}")


def make_task(config: Any, folder_of: Callable[[str], Path]) -> Task:
    """The task of a run.

    Args:
        config: the run's, with the sections that the task reads.
        folder_of: the folder of each prepared stage.
    """
    match config.task:
        case TaskName.translation:
            from pipeline.evaluate.tokenizers import tokenizer_for
            from pipeline.tasks.translation import translation

            return translation(
                folder_of,
                model=config.model,
                batch=config.batch,
                label_smoothing=config.train.label_smoothing,
                search=config.decode,
                validation_beam=config.train.validation_beam,
                tokenize=tokenizer_for(config.corpus.target_language, config.evaluate),
            )
        case _:
            raise ValueError(f"task: {config.task}")
