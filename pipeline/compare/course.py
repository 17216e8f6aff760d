"""How a training went: losses and scores by steps, tokens and time, out of the points that the run logged."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from transloom.pipeline.tasks.task import Metric
from transloom.pipeline.tracking.spool import Point

# Since the training's start, over all its attempts: seconds, and tokens by column, such as target_tokens.
COUNTED = re.compile(r"train/(seconds|\w+_tokens)")

Moment = dict[str, float]  # step, what is COUNTED, and the losses or scores then


def training_course(points: Iterable[Point]) -> list[Moment]:
    """The training loss (nats per predicted token) as it was logged: step, `COUNTED`, loss."""
    series = _series(points)
    counted = _counted(series)
    return [
        {"step": step, "loss": loss} | {name: known[step] for name, known in counted.items()}
        for step, loss in sorted(series.get("train/loss", {}).items())
        if counted and all(step in known for known in counted.values())
    ]


def validation_course(points: Iterable[Point], validations: Sequence[Mapping[str, Any]]) -> list[Moment]:
    """Every validation of a training: step, `COUNTED`, loss and scores. Between two logged points, what is counted
    grows evenly.

    Args:
        validations: of the run's `training.json`: step, loss and the scores by their metrics' names.
    Returns:
        nothing where the points are gone.
    """
    counted = _counted(_series(points))
    if not counted:
        return []
    moments = []
    for one in validations:
        moment = dict(one)
        for name, known in counted.items():
            steps = sorted(known)
            moment[name] = float(np.interp(one["step"], [0, *steps], [0.0, *(known[step] for step in steps)]))
        moments.append(moment)
    return moments


def first_reaching(course: Iterable[Moment], metric: Metric, score: float) -> Moment | None:
    """The first validation with this score or a better one; None where there was none."""
    return next((moment for moment in course if not metric.is_better(score, moment[metric.name])), None)


def _counted(series: Mapping[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    """What is COUNTED, by name; nothing where the time or the tokens are missing."""
    counted = {match[1]: series[key] for key in sorted(series) if (match := COUNTED.fullmatch(key))}
    return counted if "seconds" in counted and len(counted) > 1 else {}


def _series(points: Iterable[Point]) -> dict[str, dict[int, float]]:
    """{metric: {step: value}}; of several values for a step, after a resume, the last counts."""
    series: dict[str, dict[int, float]] = {}
    for point in points:
        if np.isfinite(point.value):
            series.setdefault(point.key, {})[point.step] = point.value
    return series
