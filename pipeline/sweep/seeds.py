"""How far chance goes: the spread of one configuration's scores over seeds, against the lead that a sweep found."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from transloom.pipeline.tasks.task import Metric


@dataclass(frozen=True)
class Chance:
    """
    Attributes:
        scores: on the validation set, of the same configuration with one seed each, first the one that won the sweep.
        mean, deviation: of the scores; the deviation is the sample's (n - 1).
        second: that of the sweep's second; None where there is none.
    """

    scores: list[float]
    mean: float
    deviation: float
    second: float | None

    def lead(self, metric: Metric) -> float:
        """By how much the best is better than the second."""
        return 0.0 if self.second is None else metric.sort_key(self.second) - metric.sort_key(self.scores[0])

    def is_within_noise(self, metric: Metric) -> bool:
        """Whether two trainings of one configuration would differ by as much as the best from the second, one time in
        twenty or more: their difference has sqrt(2) times the deviation of one, and Student's t allows for a deviation
        that is known from a handful of seeds. The best of many has had luck besides: more than this is no proof."""
        from scipy.stats import t  # half a second

        if self.second is None:
            return False
        chance = float(t.ppf(0.975, len(self.scores) - 1)) * math.sqrt(2) * self.deviation
        return self.lead(metric) < chance

    def verdict(self, metric: Metric) -> str:
        """The scores, and what they say of the lead, in words."""
        spread = (
            f"Validation {metric.title} of the best over {len(self.scores)} seeds: mean {metric.shown(self.mean)}, "
            f"standard deviation {metric.shown(self.deviation)}."
        )
        if metric.trivial is not None and metric.are_trivial(self.scores):
            bound = f"{'Below' if metric.higher_is_better else 'Above'} {metric.trivial:g} {metric.title}"
            return f"{spread} {bound} no model has learned anything: whether one leads can't be told."
        if self.second is None:
            return spread
        lead = f"Its lead over the second, {metric.shown(self.lead(metric))}, is"
        if self.is_within_noise(metric):
            return f"{spread} {lead} within what chance does: the two are not told apart."
        return f"{spread} {lead} more than chance usually does."


def chance_of(scores: Sequence[float], second: float | None) -> Chance:
    """Of at least two scores, that of the sweep's winner first."""
    return Chance(list(scores), statistics.mean(scores), statistics.stdev(scores), second)
