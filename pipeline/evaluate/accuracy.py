"""Accuracy over the items of a test: its confidence interval, and whether one system is better than another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

Z = 1.959963984540054  # of a 95 % interval
RESAMPLES, SEED = 10_000, 12345  # of the bootstrap


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

    sacreBLEU's paired tests (`significance.py`) are not for right and wrong: they count only resamples that differ by
    more than the systems do, and with so few possible differences those that differ equally are many.

    Attributes:
        first, second: each system's accuracy.
        difference: of the second to the first.
        low, high: its 95 % confidence interval, by bootstrap over items (Efron 1979), percentiles of RESAMPLES.
        only_first, only_second: items that one alone has right.
        p_mcnemar: two-sided, exact (McNemar 1947): of as uneven a split of these items where both are as good.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_mcnemar: float


def compare_correct(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """
    Args:
        first, second: whether each system has the item right, item by item; at least one item.
    """
    pairs = list(zip(first, second, strict=True))
    only_first = sum(one and not other for one, other in pairs)
    only_second = sum(other and not one for one, other in pairs)
    items, differing = len(pairs), only_first + only_second
    p_value = float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0
    # A resample is, for the difference, how many of its items are of each of three kinds.
    shares = np.array([only_first, only_second, items - differing]) / items
    counts = np.random.default_rng(SEED).multinomial(items, shares, RESAMPLES)
    low, high = np.quantile((counts[:, 1] - counts[:, 0]) / items, [0.025, 0.975])
    return Paired(
        first=sum(first) / items,
        second=sum(second) / items,
        difference=(only_second - only_first) / items,
        low=float(low),
        high=float(high),
        only_first=only_first,
        only_second=only_second,
        p_mcnemar=p_value,
    )
