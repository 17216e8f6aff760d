"""Accuracy over the items of a test: its confidence interval, and whether one system is better than another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from pipeline.evaluate.significance import Tested, compare_means

Z = 1.959963984540054  # of a 95 % interval


@dataclass(frozen=True)
class Accuracy:
    """A share of items, from 0 to 1.

    Attributes:
        low, high: the 95 % confidence interval (Wilson 1927).
        chance: what guessing comes to.
    """

    correct: int
    items: int
    value: float
    low: float
    high: float
    chance: float


def accuracy(correct: Sequence[bool], chance: float) -> Accuracy:
    """
    Args:
        correct: of each item whether the answer was right; at least one item.
        chance: from 0 to 1.
    """
    hits = sum(correct)
    return Accuracy(hits, len(correct), hits / len(correct), *wilson(hits, len(correct)), chance)


def wilson(hits: int, items: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson 1927), without a correction for continuity."""
    share, spread = hits / items, Z * Z / items
    middle = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / items + spread / (4 * items))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


@dataclass(frozen=True)
class Paired:
    """Two systems on the same items.

    Attributes:
        only_first, only_second: items that one alone has right.
        p_mcnemar: two-sided, exact (McNemar 1947): of as uneven a split of these items where both are as good.
        first, second: accuracy in per cent with its bootstrap interval; `second` also has the difference to the first
            and the p-values of the paired bootstrap and of approximate randomisation.
    """

    only_first: int
    only_second: int
    p_mcnemar: float
    first: Tested
    second: Tested


def compare_correct(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """
    Args:
        first, second: whether each system has the item right, item by item.
    """
    pairs = list(zip(first, second, strict=True))
    only_first = sum(one and not other for one, other in pairs)
    only_second = sum(other and not one for one, other in pairs)
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0
    tested = compare_means({"first": [100.0 * right for right in first], "second": [100.0 * right for right in second]})
    return Paired(only_first, only_second, p_value, tested["first"], tested["second"])
