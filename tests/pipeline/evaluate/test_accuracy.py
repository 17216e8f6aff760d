"""Intervals and tests of accuracies, against formulas and figures from elsewhere."""

from math import comb

import numpy as np
import pytest

from pipeline.evaluate.accuracy import accuracy, compare_correct, wilson


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
    assert result.first.score == pytest.approx(53) and result.second.score == pytest.approx(62)
    assert result.second.difference == pytest.approx(9)
    assert result.second.p_randomisation is not None
    # Approximate randomisation of right and wrong is the same test, by draws.
    assert result.second.p_randomisation == pytest.approx(result.p_mcnemar, abs=0.02)
    assert result.second.low < 62 < result.second.high


def test_equal_systems_do_not_differ() -> None:
    right = (np.arange(30) % 3 == 0).tolist()
    result = compare_correct(right, right)
    assert (result.only_first, result.only_second, result.p_mcnemar) == (0, 0, 1.0)
    assert result.second.p_bootstrap == result.second.p_randomisation == 1.0
