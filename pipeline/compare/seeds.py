"""Runs that differ in the seed alone, taken together: what of a difference is chance in the training."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from transloom.pipeline.files import hash_of


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


def seed_groups(scores: Mapping[str, float], settings: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """Groups of runs whose settings differ in the seed alone, two runs or more in each, as JSON values with their
    names. The first group is what the others are compared with, seed by seed.

    Args:
        scores: by run. settings: by run, the seed among them; systems without settings are in no group.
    """
    groups: dict[str, dict[str, str]] = {}  # names by seed
    for name, of_run in settings.items():
        key = hash_of({key: value for key, value in of_run.items() if key != "seed"})
        groups.setdefault(key, {})[of_run.get("seed", "")] = name
    several = [group for group in groups.values() if len(group) > 1]
    values = [{seed: scores[name] for seed, name in group.items()} for group in several]
    return [
        asdict(seed_group(of_group, None if number == 0 else values[0])) | {"names": list(several[number].values())}
        for number, of_group in enumerate(values)
    ]
