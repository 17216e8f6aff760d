"""The settings of a sweep."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from transloom.pipeline.sweep.population import MAY_CHANGE, may_change
from transloom.pipeline.sweep.space import Parameter, check_point, grid_points, parse_space


class Sampler(Enum):
    """Where a trial's values come from: every point of a grid, independent draws, Optuna's tree-structured Parzen
    estimator (Bergstra et al. 2011), which learns from the trials before, or population-based training (Jaderberg et
    al. 2017), whose trials go on with the weights of others."""

    grid = "grid"
    random = "random"
    tpe = "tpe"
    pbt = "pbt"


class Stopping(Enum):
    """Which trials end early: none, those below the median of the others, or by asynchronous successive halving (Li et
    al. 2020) all but the best of each rung."""

    none = "none"
    median = "median"
    asha = "asha"


@dataclass(frozen=True)
class SweepConfig:
    """What `transloom sweep` tries, and how much of it.

    Attributes:
        space: setting → {choices: […]} or {low, high, log, step}, and `when: {setting: value}`; see `Parameter`. null
            takes a parameter out again.
        points: values to begin with, {setting: value}; what one does not say is sampled.
        sampler: where a trial's values come from: a grid, chance, Optuna's estimator, or population-based training.
        trials: how many in all; a grid has no more than its points, and pbt always has population x generations.
        at_once: trials under way together; 0: as many as the cluster has room for.
        minutes: after which no trial begins any more, of this command; 0: no limit.
        stop: which trials end early, by their validation score at equal numbers of target tokens.
        grace: share of the training's target tokens (train.max_steps times batch.tokens) that every trial gets.
        reduction: asha's: the rungs lie at grace, grace x reduction, …, and one in `reduction` trials gets to the next.
        seeds: the best is trained with so many seeds in all, its own among them, to see how far chance goes; 0: not.
        warm_start: names of earlier sweeps of the same parameters, to learn from. Only tpe learns.
        population: pbt's trainings, of which the worst quarter takes over weights and settings of the best.
        generations: pbt's: equal shares of a training, between which that happens.
    """

    space: dict[str, Any] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    sampler: Sampler = Sampler.tpe
    trials: int = 20
    at_once: int = 0
    minutes: float = 0.0
    stop: Stopping = Stopping.none
    grace: float = 0.1
    reduction: int = 3
    seeds: int = 0
    warm_start: list[str] = field(default_factory=list)
    population: int = 8
    generations: int = 4

    def __post_init__(self) -> None:
        parameters = parse_space(self.space)
        for point in self.points:
            check_point(parameters, point)
        if self.sampler is Sampler.grid:
            grid_points(parameters)
            if self.points:
                raise ValueError("points: a grid has its own points; take sampler: random or tpe")
        if self.sampler is Sampler.pbt:
            self._check_population(parameters)
        if self.warm_start and self.sampler is not Sampler.tpe:
            raise ValueError("warm_start: only sampler: tpe learns from earlier sweeps")
        if self.trials < 1:
            raise ValueError(f"trials: must be at least 1, not {self.trials}")
        for name in ("at_once", "minutes", "seeds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be at least 0, not {getattr(self, name)}")
        if self.seeds == 1:
            raise ValueError("seeds: one seed says nothing of chance; take at least 2, better 3 or more")
        if not 0.0 < self.grace <= 1.0:
            raise ValueError(f"grace: must be above 0 and at most 1, not {self.grace}")
        if self.reduction < 2:
            raise ValueError(f"reduction: must be at least 2, not {self.reduction}")
        for name in self.warm_start:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"warm_start: takes names of sweeps, not {name!r}")

    def _check_population(self, parameters: Sequence[Parameter]) -> None:
        for one in parameters:
            if not may_change(one.name):
                raise ValueError(
                    f"space.{one.name}: can't change in the midst of a training, as sampler: pbt has it; these can: "
                    f"{', '.join(f'{name}*' if name.endswith('.') else name for name in MAY_CHANGE)}"
                )
            if one.when:
                raise ValueError(f"space.{one.name}: when: sampler: pbt knows no conditions")
        if self.stop is not Stopping.none:
            raise ValueError("stop: sampler: pbt ends none early, the worst go on as copies of the best; take none")
        if self.seeds:
            raise ValueError("seeds: the best of sampler: pbt has no one configuration to be trained again; take 0")
        for name in ("population", "generations"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}: must be at least 2, not {getattr(self, name)}")
        if len(self.points) > self.population:
            raise ValueError(f"points: are {len(self.points)}, more than the population of {self.population}")
