"""Intervals and tests of accuracies, against formulas and figures from elsewhere."""

from math import comb

import numpy as np
import pytest

from transloom.pipeline.evaluate.accuracy import accuracy, compare_correct, wilson


def test_the_interval_is_wilsons() -> None:
    # Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for hits, items, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(hits, items) == pytest.approx((low, high), abs=5e-5)
    low, high = wilson(20, 20)
    assert (low, high) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5) and high <= 1


def test_an_accuracy_says_what_guessing_comes_to() -> None:
    result = accuracy([True, False, True, True], chance=0.25)
    assert (result.correct, result.items, result.value, result.chance) == (3, 4, 0.75, 0.25)
    assert (result.low, result.high) == wilson(3, 4)


def test_mcnemars_test_is_exact_and_two_sided() -> None:
    first = [True] * 50 + [True] * 3 + [False] * 12 + [False] * 35
    second = [True] * 50 + [False] * 3 + [True] * 12 + [False] * 35
    result = compare_correct(first, second)
    assert (result.only_first, result.only_second) == (3, 12)
    assert result.p_mcnemar == pytest.approx(2 * sum(comb(15, i) for i in range(4)) / 2**15)
    assert (result.first, result.second) == (0.53, 0.62)
    assert result.difference == pytest.approx(0.09)


def test_the_interval_of_a_difference_is_that_of_resampled_items() -> None:
    first = np.array([True] * 50 + [True] * 3 + [False] * 12 + [False] * 35)
    second = np.array([True] * 50 + [False] * 3 + [True] * 12 + [False] * 35)
    chosen = np.random.default_rng(0).integers(0, 100, (20_000, 100))
    differences = second[chosen].mean(1) - first[chosen].mean(1)
    result = compare_correct(first.tolist(), second.tolist())
    assert (result.low, result.high) == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.0101)
    assert compare_correct(first.tolist(), second.tolist()) == result


def test_equal_systems_do_not_differ() -> None:
    right = (np.arange(30) % 3 == 0).tolist()
    result = compare_correct(right, right)
    assert (result.only_first, result.only_second, result.p_mcnemar) == (0, 0, 1.0)
    assert result.difference == result.low == result.high == 0
