import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transloom.pipeline.data.clean import CleanConfig, CleanReport, Evaluation, clean_pairs
from transloom.pipeline.data.overlap import spaces_alike
from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.data.words import collapse_whitespace, count_collapsed_words, count_words
from transloom.pipeline.errors import UserError


def clean(pairs, **settings):
    report = CleanReport()
    rows = [(i, f"line {i}", SentencePair(*pair)) for i, pair in enumerate(pairs, 1)]
    kept = [pair for _, pair in clean_pairs(rows, CleanConfig(**settings), report, languages=("en", "de"))]
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


def reported(pairs, languages=("en", "de"), evaluation=(), **settings):
    config, report = CleanConfig(**settings), CleanReport()
    rows = [(i, f"line {i}", SentencePair(*pair)) for i, pair in enumerate(pairs, 1)]
    sentences = Evaluation(config, [SentencePair(*pair) for pair in evaluation])
    kept = [pair for _, pair in clean_pairs(rows, config, report, sentences, languages=languages)]
    return kept, report


def test_control_characters_and_identical_sides_go_only_when_asked():
    pairs = [("a\x1bb", "c"), ("a", "c\x85d"), ("a\u00a0b\tc", "d"), ("same", "same"), ("Same", "same")]
    assert reported(pairs)[1].dropped == {}
    kept, report = reported(pairs, drop_control=True, drop_identical=True)
    assert kept == [("a\u00a0b c", "d"), ("Same", "same")]
    assert report.dropped == {"control": 2, "identical": 1}
    assert report.examples["control"] == [
        "line 1, the control character U+001B: a b | c", "line 2, the control character U+0085: a | c d",
    ]  # fmt: skip


def test_a_sentence_in_another_script_goes():
    pairs = [("Hello", "Привет"), ("Hello", "Hallo"), ("Привет мир", "Привет"), ("12:30", "12:30"), ("ΑΒΓ abc", "да")]
    kept, report = reported(pairs, ("en", "ru"), min_script=0.5)
    assert kept == [pairs[0], pairs[3], pairs[4]]
    assert report.dropped == {"wrong_script": 2}
    assert report.examples["wrong_script"][0] == "line 2, 0% of the target's letters are Cyrl: Hello | Hallo"
    assert reported([("日本語のテスト", "中文")], ("ja", "zh"), min_script=0.9)[1].kept == 1
    assert reported([("Ово је", "Ovo je")], ("sr", "sr-Latn"), min_script=0.9)[1].kept == 1
    assert reported([("한국어", "漢字 한글")], ("ko", "ko"), min_script=0.9)[1].kept == 1


def test_accents_become_one_character_and_are_counted():
    kept, report = reported([("Cafe\u0301", "e\u0301\u0301"), ("Café", "x"), ("", "e\u0301")], nfc=True)
    assert kept == [("Café", "é\u0301"), ("Café", "x")]
    assert (report.changed, report.dropped) == ({"nfc": 1}, {"empty": 1})
    # A test sentence in either form is found.
    for form in ("Café", "Cafe\u0301"):
        assert reported([("Cafe\u0301", "x")], nfc=True, evaluation=[(form, "y")])[1].dropped == {"contaminated": 1}


def test_sentences_similar_to_a_test_sentence_go():
    evaluation = [("The cat sat on the old mat in the sun", "Die Katze")]
    pairs = [
        ("the cat sat on the old mat in the sun!", "x y"),  # equal but for case and punctuation
        ("The cat sat on the old mat in the shade", "x y"),  # 9 of 13 word pairs
        ("The cat sat on a chair", "x"),
        ("Die Katze", "The cat sat on the old mat in the sun"),  # of the other side
    ]
    assert reported(pairs, evaluation=evaluation)[1].dropped == {}
    kept, report = reported(pairs, evaluation=evaluation, near_test=0.6)
    assert (kept, report.dropped) == (pairs[2:], {"near_test": 2})
    assert report.examples["near_test"][0].startswith("line 1, near 'The cat sat on the old mat in the sun' of")
    assert reported(pairs, evaluation=evaluation, near_test=0.7)[1].dropped == {"near_test": 1}


def test_each_rule_has_its_first_three_examples():
    report = reported([(f"a{i}", "") for i in range(5)])[1]
    assert report.examples["empty"] == [f"line {i}, empty target: a{i - 1} | " for i in (1, 2, 3)]


def test_the_language_is_identified_by_a_library_or_the_lack_of_it_is_told():
    pairs = [
        ("This is a sentence about the weather.", "Das ist ein Satz über das Wetter von heute."),
        ("Dies ist ein deutscher Satz über das Wetter.", "Das ist ein Satz über das Wetter von heute."),
        ("Ja gut", "Yes well"),  # too short to tell
    ]
    try:
        import py3langid  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"^clean\.identify_language: .*py3langid"):
            reported(pairs, identify_language=True)
        return
    kept, report = reported(pairs, identify_language=True)
    assert (kept, report.dropped) == ([pairs[0], pairs[2]], {"wrong_language": 1})


@settings(derandomize=True, deadline=None)
@given(st.text())
def test_words_of_a_collapsed_text_are_counted_as_of_any(text):
    collapsed = collapse_whitespace(text)
    assert count_collapsed_words(collapsed) == count_words(collapsed)


@settings(derandomize=True, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_spaces_are_made_alike_as_by_splitting(text):
    assert spaces_alike(text) == " ".join(text.split())
