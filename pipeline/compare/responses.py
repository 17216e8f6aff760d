"""Models that respond to prompts compared: the score of each response, with paired tests over the examples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from transloom.pipeline.compare.comparison import RunFacts, about_runs, facts_of_run
from transloom.pipeline.compare.seeds import seed_groups
from transloom.pipeline.evaluate.bootstrap import RESAMPLES, SEED, compare_ratios
from transloom.pipeline.files import hash_of
from transloom.pipeline.tasks.build import TaskName
from transloom.pipeline.tasks.task import Metric


@dataclass(frozen=True)
class RespondedBy:
    """A run's responses: (examples,) the score of each by the metric that chooses among runs; and the means of the
    other scores, by name."""

    name: str
    where: str
    scores: np.ndarray
    others: Mapping[str, float]
    signature: str
    run: RunFacts


def compare_responses(
    systems: Sequence[RespondedBy],
    metric: Metric,
    split: str,
    examples: str,
    baselines: Mapping[str, float],
    reach: float | None = None,
) -> dict[str, Any]:
    """Compares each model with the first one, the baseline, as JSON values.

    Args:
        systems: two at least, with different names.
        split: of the examples. examples: hash of their prompts and answers.
        baselines: scores of simple responses to the same prompts.
        reach: the validation score that time and cost are counted to; None: the highest that all runs reached.
    Raises:
        UserError: no run reached that.
    """
    count = len(systems[0].scores)
    tested = compare_ratios({system.name: system.scores for system in systems}, np.ones(count))
    runs = {system.name: system.run for system in systems}
    first = systems[0].scores
    return {
        "key": hash_of([{system.name: system.scores.tolist() for system in systems}, systems[0].name, examples]),
        "task": TaskName.prompt_response.value,
        "metric": asdict(metric),
        "names": list(runs),
        "baseline": systems[0].name,
        "split": split,
        "examples": count,
        "references": examples,
        "signatures": {},
        "resamples": RESAMPLES,
        "seed": SEED,
        "simple_models": dict(baselines),
        "systems": {
            system.name: {
                "where": system.where,
                "scores": {
                    metric.name: asdict(tested[system.name]),
                    **{name: {"score": value} for name, value in system.others.items()},
                },
                "signature": system.signature,
                "examples": {
                    "better": int((system.scores > first).sum()),
                    "worse": int((system.scores < first).sum()),
                    "equal": int((system.scores == first).sum()),
                },
                **facts_of_run(system.run),
            }
            for system in systems
        },
        "seeds": seed_groups(
            {name: one.score for name, one in tested.items()}, {name: run.settings for name, run in runs.items()}
        ),
        **about_runs(runs, metric, reach),
    }
