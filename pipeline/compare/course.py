"""How a training went: losses and scores by steps, tokens and time, out of the points that the run logged."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.tasks.task import Metric
from pipeline.tracking.spool import Point

COUNTED = ("seconds", "source_tokens", "target_tokens")  # since the training's start, over all its attempts

Moment = dict[str, float]  # step, what is COUNTED, and the losses or scores then


def training_course(points: Iterable[Point]) -> list[Moment]:
    """The training loss (nats per target token) as it was logged: step, `COUNTED`, loss."""
    series = _series(points)
    return [
        {"step": step, "loss": loss} | {name: series[f"train/{name}"][step] for name in COUNTED}
        for step, loss in sorted(series.get("train/loss", {}).items())
        if all(step in series.get(f"train/{name}", {}) for name in COUNTED)
    ]


def validation_course(points: Iterable[Point], validations: Sequence[Mapping[str, Any]]) -> list[Moment]:
    """Every validation of a training: step, `COUNTED`, loss and scores. Between two logged points, what is counted
    grows evenly.

    Args:
        validations: of the run's `training.json`: step, loss and the scores by their metrics' names.
    Returns:
        nothing where the points are gone.
    """
    series = _series(points)
    if not all(series.get(f"train/{name}") for name in COUNTED):
        return []
    moments = []
    for one in validations:
        moment = dict(one)
        for name in COUNTED:
            known = series[f"train/{name}"]
            steps = sorted(known)
            moment[name] = float(np.interp(one["step"], [0, *steps], [0.0, *(known[step] for step in steps)]))
        moments.append(moment)
    return moments


def first_reaching(course: Iterable[Moment], metric: Metric, score: float) -> Moment | None:
    """The first validation with this score or a better one; None where there was none."""
    return next((moment for moment in course if not metric.is_better(score, moment[metric.name])), None)


def _series(points: Iterable[Point]) -> dict[str, dict[int, float]]:
    """{metric: {step: value}}; of several values for a step, after a resume, the last counts."""
    series: dict[str, dict[int, float]] = {}
    for point in points:
        if np.isfinite(point.value):
            series.setdefault(point.key, {})[point.step] = point.value
    return series
