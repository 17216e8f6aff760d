"""The bootstrap over documents: a ratio of sums with its interval, and whether two differ."""

import numpy as np
import pytest

from transloom.pipeline.evaluate.bootstrap import compare_ratios

SIZES = np.array([100, 300, 50, 550] * 10)


def test_the_score_is_the_sum_of_bits_over_the_sum_of_bytes() -> None:
    bits = np.where(SIZES == 550, 1.0, 3.0) * SIZES
    tested = compare_ratios({"a": bits, "b": bits + 0.5 * SIZES}, SIZES, resamples=500)
    expected = (3.0 * 450 + 550) / 1000  # not the mean of the documents' ratios, 2.5
    assert tested["a"].score == pytest.approx(expected) and tested["b"].score == pytest.approx(expected + 0.5)
    assert tested["a"].low < expected < tested["a"].high
    assert tested["a"].difference is None and tested["a"].p_bootstrap is None
    assert tested["b"].difference == pytest.approx(0.5)
    assert tested["b"].p_bootstrap == pytest.approx(1 / 501) == tested["b"].p_holm  # by as much on every document


def test_the_interval_is_that_of_the_normal_approximation_where_all_are_of_one_size() -> None:
    rng = np.random.default_rng(1)
    ratios, sizes = rng.normal(2.0, 0.3, 400), np.full(400, 1000)
    half = 1.96 * ratios.std() / np.sqrt(400)
    tested = compare_ratios({"a": ratios * sizes, "b": ratios * sizes}, sizes)
    assert tested["a"].low == pytest.approx(ratios.mean() - half, abs=0.004)
    assert tested["a"].high == pytest.approx(ratios.mean() + half, abs=0.004)
    assert tested["b"].p_bootstrap == 1.0  # equal systems


def test_a_difference_within_chance_has_the_p_value_of_a_t_test() -> None:
    rng = np.random.default_rng(2)
    sizes = np.full(400, 1000)
    bits = rng.normal(2000.0, 300.0, 400)
    differences = rng.normal(0.0, 100.0, 400)
    differences += 1.5 * 100.0 / 20 - differences.mean()  # 1.5 standard errors
    tested = compare_ratios({"a": bits, "b": bits + differences, "c": bits + differences}, sizes)
    p = tested["b"].p_bootstrap
    assert p is not None and p == pytest.approx(0.134, abs=0.03)
    assert tested["b"].p_holm == pytest.approx(2 * p)


@pytest.mark.parametrize(("count", "p"), [(1, 1.0), (9, 1.0), (10, 1 / 501)])
def test_a_few_documents_show_no_difference(count: int, p: float) -> None:
    sizes = np.full(count, 100)
    tested = compare_ratios({"a": 2.0 * sizes, "b": 2.1 * sizes}, sizes, resamples=500)
    assert tested["b"].p_bootstrap == pytest.approx(p) == tested["b"].p_holm
