import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transloom.pipeline.data.clean import CleanConfig, CleanReport, clean_pairs
from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.data.words import collapse_whitespace


def clean(pairs, **settings):
    report = CleanReport()
    rows = [(f"line {i}", SentencePair(*pair)) for i, pair in enumerate(pairs, 1)]
    kept = list(clean_pairs(rows, CleanConfig(**settings), report))
    assert report.kept == len(kept)
    assert report.kept + report.dropped.total() == len(pairs)
    return kept, dict(report.dropped)


def test_empty_sides_are_dropped_and_counted():
    assert clean([("a", ""), ("", "b"), (" \t", "b"), ("a", "\u00a0\u2028"), ("a", "b")]) == (
        [("a", "b")],
        {"empty": 4},
    )


def test_limits_are_inclusive():
    assert clean([("a b", "c d"), ("a b", "c d e")], max_words=2) == ([("a b", "c d")], {"too_long": 1})
    assert clean([("é" * 5, "b"), ("é" * 5 + "x", "b")], max_bytes=10) == ([("é" * 5, "b")], {"too_long": 1})
    assert clean([("a", "b c"), ("a b c", "d"), ("a b c", "d e")], max_ratio=2.0) == (
        [("a", "b c"), ("a b c", "d e")],
        {"length_ratio": 1},
    )


def test_duplicates_are_dropped_only_when_asked_and_only_of_whole_pairs():
    pairs = [("a", "b"), ("a", "c"), (" a ", "b"), ("a", "b")]
    assert clean(pairs)[1] == {}
    assert clean(pairs, drop_duplicates=True) == ([("a", "b"), ("a", "c")], {"duplicate": 2})


def test_the_border_between_the_sides_counts_for_a_duplicate():
    assert clean([("a b", "c"), ("a", "b c")], drop_duplicates=True)[1] == {}


def test_whitespace_inside_is_collapsed_only_where_it_is_ascii():
    assert collapse_whitespace(" a \t\r\v\f b\u00a0 c\u2028\u2009d\u3000") == "a b\u00a0 c\u2028\u2009d"


@settings(derandomize=True, deadline=None)
@given(st.text())
def test_collapsing_twice_changes_nothing_and_loses_no_visible_character(text):
    once = collapse_whitespace(text)
    assert collapse_whitespace(once) == once
    assert "".join(once.split()) == "".join(text.split())


@pytest.mark.parametrize(
    "settings",
    [{"max_words": 0}, {"max_bytes": 0}, {"max_bytes": 1 << 30}, {"max_ratio": 0.5}, {"max_ratio": float("nan")}],
)
def test_impossible_limits_are_refused_by_name(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CleanConfig(**settings)
