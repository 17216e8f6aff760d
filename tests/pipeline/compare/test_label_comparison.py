"""Classifiers compared: paired tests, and groups of runs that differ in their seed alone."""

import numpy as np
import pytest
from scipy import stats

from transloom.pipeline.compare.comparison import RunFacts
from transloom.pipeline.compare.labels import LabelledBy, compare_labels
from transloom.pipeline.compare.seeds import seed_group, seed_groups


def facts(**settings: str) -> RunFacts:
    return RunFacts(
        settings=settings, data={}, environment={}, training={}, steps_averaged=[1], search="", progress="ended",
        validation_set="same", course=[], validations=[],
    )  # fmt: skip


def system(name: str, rate: float, seed: int) -> LabelledBy:
    correct = np.random.default_rng([ord(name[0]), seed]).random(400) < rate
    return LabelledBy(name, name, correct, 100 * rate, facts(seed=str(seed), rate=str(rate)))


def test_each_run_is_compared_with_the_first_by_mcnemar_s_test() -> None:
    first = np.array([True] * 50 + [False] * 50)
    second = np.array([True] * 45 + [False] * 5 + [True] * 20 + [False] * 30)
    systems = [LabelledBy(name, name, x, 1.0, facts(seed="1", a=name)) for name, x in (("a", first), ("b", second))]
    result = compare_labels(systems, "test", "hash", {"majority class": 40.0})
    scores = result["systems"]["b"]["scores"]["accuracy"]
    assert scores["score"] == pytest.approx(65.0) and scores["difference"] == pytest.approx(15.0)
    assert (scores["only_this"], scores["only_baseline"]) == (20, 5)
    assert scores["p_mcnemar"] == scores["p_holm"] == pytest.approx(stats.binomtest(5, 25).pvalue)
    assert scores["difference_low"] < 15.0 < scores["difference_high"] and result["seeds"] == []
    assert "difference" not in result["systems"]["a"]["scores"]["accuracy"]


def test_groups_of_seeds_are_compared_seed_by_seed() -> None:
    systems = [system(f"a{seed}", 0.7, seed) for seed in (1, 2, 3)]
    systems += [system(f"b{seed}", 0.8, seed) for seed in (2, 3, 1)]
    first, second = compare_labels(systems, "test", "hash", {})["seeds"]
    scores = {one.name: 100 * one.correct.mean() for one in systems}
    expected = stats.ttest_rel([scores[f"b{seed}"] for seed in (1, 2, 3)], [scores[f"a{seed}"] for seed in (1, 2, 3)])
    assert first["names"] == ["a1", "a2", "a3"] and first["difference"] is None
    assert second["pairs"] == 3 and second["p_value"] == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (second["low"], second["high"]) == pytest.approx((interval.low, interval.high))
    assert second["mean"] == pytest.approx(np.mean([scores[f"b{seed}"] for seed in (1, 2, 3)]))
    assert second["deviation"] == pytest.approx(np.std([scores[f"b{seed}"] for seed in (1, 2, 3)], ddof=1))


def test_without_seeds_in_common_there_is_no_test() -> None:
    assert seed_group({"1": 1.0, "2": 2.0}, {"3": 1.0, "4": 2.0}).difference is None
    assert seed_group({"1": 1.0, "2": 2.0}, {"1": 1.0, "2": 2.0}).p_value == 1.0


def test_runs_of_one_group_have_mean_and_spread_and_runs_alone_are_in_no_group() -> None:
    settings = {name: {"seed": name[1], "rate": name[0]} for name in ("a1", "a2", "a3", "b1")}
    (group,) = seed_groups({"a1": 1.0, "a2": 2.0, "a3": 3.0, "b1": 9.0}, settings)
    assert group["names"] == ["a1", "a2", "a3"] and (group["mean"], group["deviation"]) == (2.0, 1.0)
    assert group["difference"] is None
