"""Parts of a test set: every sentence and every word is in one bucket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transloom.pipeline.evaluate.buckets import (
    by_length,
    f1_by_frequency,
    frequencies,
    reference_words_by_frequency,
    words_of,
)

SENTENCES = st.lists(st.integers(0, 70).map(lambda count: " ".join(["word"] * count)), min_size=1, max_size=40)


@given(SENTENCES)
def test_each_sentence_is_in_the_bucket_of_its_length(references: list[str]) -> None:
    buckets = by_length(references)
    assert sorted(place for places in buckets.values() for place in places) == list(range(len(references)))
    for label, places in buckets.items():
        low, _, high = label.removesuffix("+").partition("-")
        for place in places:
            length = len(references[place].split())
            assert int(low) <= length and (label.endswith("+") or length <= int(high or low))


def test_buckets_are_in_order_and_have_the_right_limits() -> None:
    lengths = [51, 5, 6, 50, 20, 21]
    assert list(by_length(["a " * length for length in lengths])) == ["0-5", "6-10", "16-20", "21-30", "41-50", "51+"]


def test_words_are_counted_as_bleu_counts_them() -> None:
    assert words_of(["Ein Hund, der bellt."]) == [["Ein", "Hund", ",", "der", "bellt", "."]]
    assert frequencies(["Hund, Hund.", "ein Hund"], ["Hund", ",", "Katze"]) == {"Hund": 3, ",": 1, "Katze": 0}


def test_f1_of_a_case_counted_by_hand() -> None:
    seen = {"the": 500, "cat": 3, "dog": 3, "axolotl": 0, "a": 120}
    meant = [["the", "axolotl"], ["the", "cat"], ["a", "cat"]]
    said = [["the", "cat"], ["the", "the", "cat"], ["a", "dog"]]
    assert reference_words_by_frequency(meant, seen) == {"0": 1, "1-4": 2, "100+": 3}
    f1 = f1_by_frequency(said, meant, seen)
    # never seen: said 0 of 1; seen 1 to 4 times: 1 of 3 said and of 2 meant is right; often: 3 of 4 and of 3
    assert f1 == pytest.approx({"0": 0.0, "1-4": 100 * 2 * 1 / (3 + 2), "100+": 100 * 2 * 3 / (4 + 3)})


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=6), min_size=1, max_size=8))
def test_a_perfect_translation_has_all_words_right(meant: list[list[str]]) -> None:
    seen = {"a": 0, "b": 1, "c": 5, "d": 19, "e": 20, "f": 1000}
    f1 = f1_by_frequency(meant, meant, seen)
    assert set(f1.values()) <= {100.0}
    assert list(f1) == list(reference_words_by_frequency(meant, seen))
