"""Scores, intervals and p-values are sacreBLEU's own, on the published outputs of real systems too."""

import csv
import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest

from transloom.pipeline.evaluate.scores import score
from transloom.pipeline.evaluate.significance import (
    compare_means,
    compare_systems,
    count_statistics,
    holm,
    score_of,
    signature_of,
)

FEW = 300  # sentences, where TER is counted by sacreBLEU again and again
SYSTEMS = ("newstest2017.C-3MA.4959.de", "newstest2017.FBK.4870.de")


def lines(path: Path) -> list[str]:
    return path.read_bytes().decode().removesuffix("\n").split("\n")


@pytest.fixture(scope="module")
def systems(corpora: Path) -> dict[str, list[str]]:
    return {name: lines(corpora / "wmt17-en-de-systems" / "systems" / name) for name in SYSTEMS}


@pytest.fixture(scope="module")
def references(corpora: Path) -> list[str]:
    return lines(corpora / "wmt17-en-de-systems" / "ref.de")


@pytest.fixture(scope="module")
def counted(systems, references):
    """In processes, as the command does it."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        return count_statistics(systems, references, pool.map)


@pytest.mark.slow
def test_scores_are_the_published_ones(corpora: Path, counted) -> None:
    with open(corpora / "wmt17-en-de-systems" / "expected_scores.tsv", newline="") as file:
        rows = {(row["system"], row["metric"]): float(row["score"]) for row in csv.DictReader(file, delimiter="\t")}
    for name in SYSTEMS:
        assert score_of("bleu", counted["bleu"][name]) == pytest.approx(rows[name, "bleu_mteval-v13a"], abs=0.01)
        assert score_of("chrf", counted["chrf"][name]) == pytest.approx(rows[name, "chrf"], abs=0.001)
        assert score_of("ter", counted["ter"][name]) / 100 == pytest.approx(rows[name, "ter"], abs=0.0006)


@pytest.mark.slow
def test_p_values_and_intervals_are_those_of_sacrebleus_own_tests(systems, references, counted) -> None:
    few = {metric: {name: counts[:FEW] for name, counts in by.items()} for metric, by in counted.items()}
    ours = compare_systems(few)
    named = [(name, said[:FEW]) for name, said in systems.items()]
    titles = {"bleu": "BLEU", "chrf": "chrF2", "ter": "TER"}
    for kind in ("bs", "ar"):
        metrics = {"bleu": BLEU(), "chrf": CHRF(), "ter": TER()}
        _, theirs = PairedTest(named, metrics, [references[:FEW]], kind)()
        for metric, title in titles.items():
            baseline, system = theirs[title]
            mine = ours[metric][SYSTEMS[1]]
            assert mine.score == system.score
            assert (mine.p_bootstrap if kind == "bs" else mine.p_randomisation) == system.p_value
            if kind == "bs":
                for one, other in ((ours[metric][SYSTEMS[0]], baseline), (mine, system)):
                    assert (one.low, one.high) == (other.mean - other.ci, other.mean + other.ci)
    assert ours["bleu"][SYSTEMS[0]].difference is None
    assert ours["bleu"][SYSTEMS[1]].p_holm == ours["bleu"][SYSTEMS[1]].p_randomisation  # of one comparison


SAID = {
    "first": ["the cat sat on the mat", "a dog ran", "", "nothing like it"],
    "second": ["the cat sat on a mat", "the dog runs away", "something", "nothing like that at all"],
    "again": ["the cat sat on the mat", "a dog ran", "", "nothing like it"],
}
MEANT = ["the cat sat on the mat", "the dog ran away", "something else", "nothing at all like that"]


def test_the_same_sentences_are_no_difference() -> None:
    tested = compare_systems(count_statistics(SAID, MEANT))
    for systems in tested.values():
        same = systems["again"]
        assert (same.difference, same.p_bootstrap, same.p_randomisation, same.p_holm) == (0.0, 1.0, 1.0, 1.0)
        assert (same.low, same.high) == (systems["first"].low, systems["first"].high)


def test_scores_and_signatures_are_those_of_an_evaluation() -> None:
    counted = count_statistics(SAID, MEANT)
    for name, said in SAID.items():
        for metric, one in score(said, MEANT, in_full=True).items():
            assert score_of(metric, counted[metric][name]) == pytest.approx(one.value)
            assert signature_of(metric) == one.signature
            assert one.half_width is not None and one.half_width >= 0


def test_tasks_are_cut_without_a_trace() -> None:
    meant = [f"{sentence} {number}" for number in range(70) for sentence in MEANT]  # 280: more than a task has
    said = {"one": [f"{sentence} {number}" for number in range(70) for sentence in SAID["second"]]}
    counted = count_statistics(said, meant)
    assert len(counted["ter"]["one"]) == len(meant)
    assert score_of("ter", counted["ter"]["one"]) == TER().corpus_score(said["one"], [meant]).score


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_correction(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= q <= min(1.0, p * len(p_values)) + 1e-12 for p, q in zip(p_values, corrected, strict=True))
    by_p = [q for _, q in sorted(zip(p_values, corrected, strict=True))]
    assert by_p == sorted(by_p)
    assert holm(p_values[:1]) == p_values[:1]


def test_holms_correction_of_a_known_case() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_means_tests_are_sacrebleus_own() -> None:
    """TER of a test set is the mean of its sentences' where all references are of one length. With powers of two all
    sums are exact, and the p-values the same."""
    draw = random.Random(5)
    meant = [" ".join(draw.choices("abcdefgh", k=4)) for _ in range(64)]
    said = {
        name: [" ".join(word if draw.random() < right else "z" for word in line.split()) for line in meant]
        for name, right in (("first", 0.55), ("second", 0.65), ("third", 0.9))
    }
    ter = TER()
    scores = {
        name: [ter.sentence_score(*pair).score for pair in zip(its, ([m] for m in meant), strict=True)]
        for name, its in said.items()
    }
    ours, theirs = compare_means(scores), compare_systems({"ter": count_statistics(said, meant)["ter"]})["ter"]
    for name, one in ours.items():
        its = theirs[name]
        assert (one.low, one.high) == pytest.approx((its.low, its.high), abs=1e-5)  # sacreBLEU has them in 32 bits
        assert one == replace(its, low=one.low, high=one.high)
    assert 0.001 < (theirs["second"].p_randomisation or 0) < 0.5 and theirs["third"].p_bootstrap == 1 / 1001


def test_a_means_tests_by_hand() -> None:
    """The tests as the papers have them, written out, on numbers that are no counts."""
    from numpy import abs, array, mean, sort
    from numpy.random import default_rng

    numbers = default_rng(1)
    first = numbers.normal(0.8, 0.1, 200)
    second = first + numbers.normal(0.004, 0.04, 200)
    tested = compare_means({"first": first.tolist(), "second": second.tolist(), "again": first.tolist()})
    ours, difference = tested["second"], float(mean(second) - mean(first))
    assert ours.score == pytest.approx(mean(second)) and ours.difference == pytest.approx(difference)
    places = default_rng(12345).choice(200, size=(1000, 200))
    means = sort(second[places].mean(1))
    half_width = (means[-26] - means[25]) / 2
    assert (ours.low, ours.high) == pytest.approx((means.mean() - half_width, means.mean() + half_width), abs=1e-6)
    resampled = abs((second - first)[places].mean(1))
    assert ours.p_bootstrap == (sum(resampled - resampled.mean() > abs(difference)) + 1) / 1001
    swapped = default_rng(12345).integers(2, size=(10_000, 200), dtype=bool) * 2 - 1
    assert ours.p_randomisation == (sum(abs(swapped @ (second - first)) / 200 > abs(difference)) + 1) / 10_001
    assert 0.01 < array([ours.p_bootstrap, ours.p_randomisation]).min() < 0.9
    assert (tested["again"].p_bootstrap, tested["again"].p_randomisation) == (1.0, 1.0)
