"""The tasks by name. What trains, sweeps or draws imports no task, but asks here."""

from enum import Enum

from pipeline.tasks.task import Metric


class TaskName(Enum):
    """What is learned."""

    translation = "translation"


def selecting_metric(task: TaskName) -> Metric:
    """The metric that runs of a task are chosen by."""
    match task:
        case TaskName.translation:
            from pipeline.tasks.translation import BLEU

            return BLEU
