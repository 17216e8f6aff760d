"""Classifiers compared: accuracy on the same texts with paired tests, and groups of runs that differ in their seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from transloom.pipeline.compare.comparison import RunFacts, about_runs, facts_of_run
from transloom.pipeline.evaluate.accuracy import RESAMPLES, SEED, compare_correct, wilson
from transloom.pipeline.evaluate.significance import holm
from transloom.pipeline.files import hash_of
from transloom.pipeline.tasks.build import TaskName, selecting_metric


@dataclass(frozen=True)
class LabelledBy:
    """A run's labels of the texts: (texts,) whether each is right."""

    name: str
    where: str
    correct: np.ndarray
    macro_f1: float
    run: RunFacts


def compare_labels(
    systems: Sequence[LabelledBy],
    split: str,
    texts: str,
    baselines: Mapping[str, float],
    reach: float | None = None,
) -> dict[str, Any]:
    """Compares each classifier with the first one, the baseline, as JSON values. Accuracies are percentages.

    Args:
        systems: two at least, with different names.
        split: of the texts. texts: hash of the texts and their labels.
        baselines: accuracy of simple models on the same texts.
        reach: the validation accuracy that time and cost are counted to; None: the highest that all runs reached.
    Raises:
        UserError: no run reached that.
    """
    metric = selecting_metric(TaskName.classification)
    first = systems[0]
    tests = {one.name: compare_correct(first.correct.tolist(), one.correct.tolist()) for one in systems[1:]}
    corrected = dict(zip(tests, holm([test.p_mcnemar for test in tests.values()]), strict=True))
    runs = {system.name: system.run for system in systems}
    return {
        "key": hash_of([{one.name: one.correct.tolist() for one in systems}, first.name, texts]),
        "task": TaskName.classification.value,
        "names": list(runs),
        "baseline": first.name,
        "split": split,
        "texts": len(first.correct),
        "references": texts,
        "signatures": {},
        "resamples": RESAMPLES,
        "seed": SEED,
        "simple_models": dict(baselines),
        "systems": {
            one.name: {
                "where": one.where,
                "scores": {
                    metric.name: _scores(one, tests.get(one.name), corrected.get(one.name)),
                    "macro_f1": {"score": one.macro_f1},
                },
                **facts_of_run(one.run),
            }
            for one in systems
        },
        "seeds": _seeds(systems),
        **about_runs(runs, metric, reach),
    }


def _scores(one: LabelledBy, test: Any, p_holm: float | None) -> dict[str, Any]:
    low, high = wilson(int(one.correct.sum()), len(one.correct))
    scores: dict[str, Any] = {"score": 100.0 * float(one.correct.mean()), "low": 100.0 * low, "high": 100.0 * high}
    if test is None:
        return scores
    percent = {name: 100.0 * getattr(test, name) for name in ("difference", "low", "high")}
    return scores | {
        "difference": percent["difference"],
        "difference_low": percent["low"],
        "difference_high": percent["high"],
        "only_baseline": test.only_first,
        "only_this": test.only_second,
        "p_mcnemar": test.p_mcnemar,
        "p_holm": p_holm,
    }


def _seeds(systems: Sequence[LabelledBy]) -> list[dict[str, Any]]:
    """Groups of runs whose settings differ in the seed alone, two runs or more in each; the first group is what the
    others are compared with, seed by seed. Empty without two such groups."""
    groups: dict[str, dict[str, LabelledBy]] = {}
    for one in systems:
        settings = {key: value for key, value in one.run.settings.items() if key != "seed"}
        groups.setdefault(hash_of(settings), {})[one.run.settings["seed"]] = one
    several = [group for group in groups.values() if len(group) > 1]
    if len(several) < 2:
        return []
    first = several[0]
    return [asdict(seed_group(_values(group), None if group is first else _values(first))) | {
        "names": [one.name for one in group.values()]
    } for group in several]  # fmt: skip


def _values(group: Mapping[str, LabelledBy]) -> dict[str, float]:
    return {seed: 100.0 * float(one.correct.mean()) for seed, one in group.items()}


@dataclass(frozen=True)
class SeedGroup:
    """Scores of runs that differ in the seed alone.

    Attributes:
        mean, deviation: of the scores; the standard deviation of a sample.
        pairs: seeds that both groups have; with fewer than two, the values below are None.
        difference, low, high: the mean of the differences to the other group, seed by seed, with the 95 % interval of
            Student's t.
        p_value: two-sided, of the paired t-test.
    """

    runs: int
    mean: float
    deviation: float
    pairs: int = 0
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


def seed_group(scores: Mapping[str, float], others: Mapping[str, float] | None = None) -> SeedGroup:
    """
    Args:
        scores: by seed, two at least. others: of the group to compare with.
    """
    from scipy import stats

    values = list(scores.values())
    group = SeedGroup(len(values), float(np.mean(values)), float(np.std(values, ddof=1)))
    shared = [seed for seed in scores if others and seed in others]
    if others is None or len(shared) < 2:
        return SeedGroup(group.runs, group.mean, group.deviation, len(shared))
    differences = np.array([scores[seed] - others[seed] for seed in shared])
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(len(shared))
    half = float(stats.t.ppf(0.975, len(shared) - 1)) * error
    p_value = 2.0 * float(stats.t.sf(abs(mean) / error, len(shared) - 1)) if error else float(mean == 0.0)
    return SeedGroup(group.runs, group.mean, group.deviation, len(shared), mean, mean - half, mean + half, p_value)
