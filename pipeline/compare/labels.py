"""Classifiers compared: accuracy on the same texts with paired tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transloom.pipeline.compare.comparison import RunFacts, about_runs, facts_of_run
from transloom.pipeline.compare.seeds import seed_groups
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
        "seeds": seed_groups(
            {one.name: 100.0 * float(one.correct.mean()) for one in systems},
            {name: run.settings for name, run in runs.items()},
        ),
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
