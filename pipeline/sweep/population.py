"""Population-based training (Jaderberg et al. 2017), in generations: who takes over whose weights and settings, and
what they become. Pure functions of scores, settings and a seed: a sweep that goes on after a kill decides the same.

The paper's members look at each other whenever they are ready. Here a generation waits for its last member, so that it
does not matter how many train at once.
"""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from transloom.pipeline.sweep.space import Parameter, Point, Value
from transloom.pipeline.tasks.task import Metric

QUARTER = 4  # truncation selection: the worst quarter follows the best
FACTORS = (0.8, 1.25)  # of the paper's 0.8 and 1.2, so that one takes back the other

# What may change in the midst of a training: neither the model's shape, nor its batches, nor their order.
MAY_CHANGE = ("schedule.", "optimizer.", "model.dropout", "train.label_smoothing")


class Heir(NamedTuple):
    """A member of the next generation: which member's weights it goes on with, from 0, and its settings."""

    parent: int
    point: Point


def may_change(name: str) -> bool:
    """Whether a setting may change in the midst of a training."""
    return any(name == one or (one.endswith(".") and name.startswith(one)) for one in MAY_CHANGE)


def place_of(number: int, population: int) -> tuple[int, int]:
    """Generation and member, both from 1, of the trial with this number: trials are numbered by generations."""
    generation, member = divmod(number - 1, population)
    return generation + 1, member + 1


def next_generation(
    scores: Sequence[float | None],
    metric: Metric,
    points: Sequence[Point],
    parameters: Sequence[Parameter],
    seed: int,
) -> list[Heir]:
    """Truncation selection and exploration (the paper, section 4.1.1): each of the worst quarter, at least one, and all
    that failed take over from one of the best quarter, and vary its settings; the others go on as they are.

    Args:
        scores: of the members of a generation, all of which have ended; None: failed.
        metric: of the scores.
        points: their settings.
    Returns:
        by member; empty where all have failed.
    """
    keys = {i: metric.sort_key(score) for i, score in enumerate(scores) if score is not None}
    ranked = sorted(keys, key=keys.__getitem__)
    failed = [i for i, score in enumerate(scores) if score is None]
    if not ranked:
        return []
    count = max(1, len(scores) // QUARTER)
    best, worst = ranked[:count], [*ranked, *failed][-max(count, len(failed)) :]
    chance = random.Random(seed)
    heirs = []
    for i, point in enumerate(points):
        parent = chance.choice(best) if i in worst else i
        heirs.append(Heir(parent, dict(point) if parent == i else explore(points[parent], parameters, chance)))
    return heirs


def explore(point: Point, parameters: Sequence[Parameter], chance: random.Random) -> Point:
    """Settings near those of a point: each number times 0.8 or 1.25, within its range; each choice the one before or
    after it. A number of 0, which no factor moves, is drawn anew."""
    return {one.name: _near(one, point[one.name], chance) for one in parameters}


def _near(one: Parameter, value: Value, chance: random.Random) -> Value:
    factor = chance.choice(FACTORS)
    is_up = factor > 1
    if one.choices:
        place = one.choices.index(value) + (1 if is_up else -1)
        return one.choices[min(max(place, 0), len(one.choices) - 1)]
    assert isinstance(value, int | float)
    moved = value * factor if value else chance.uniform(one.low, one.high)
    step = one.step or (1 if one.is_whole else None)
    if step is None:
        return min(max(moved, one.low), one.high)
    # To a step of the range, and by one at least.
    here, there = round((value - one.low) / step), round((moved - one.low) / step)
    there = max(here + 1, there) if is_up or not value else min(here - 1, there)
    stepped = one.low + min(max(there, 0), math.floor((one.high - one.low) / step + 1e-9)) * step
    return stepped if one.is_whole else min(round(stepped, 12), one.high)
