"""Tests of the scores of responses, and of the simple baselines."""

import pytest

from transloom.pipeline.data.prompts import Example, ResponseMetric
from transloom.pipeline.evaluate.responses import normalized, parses, response_scores, squad_f1, summarized
from transloom.pipeline.evaluate.simple_responses import (
    first_sentence,
    most_similar_sentence,
    sentences,
    simple_responses,
)


def test_rouge_is_the_library_s_on_lower_cased_words_and_takes_the_best_answer() -> None:
    pytest.importorskip("rouge_score")
    # All 4 words are among the 6, of 3 and 5 pairs one is the same, and 2 words stand in the same order.
    scores = response_scores(ResponseMetric.rouge, ["The mat on CAT"], [["the cat sat on the mat", "zebra"]])
    assert scores["rouge_1"] == [pytest.approx(100 * 2 * (4 / 4) * (4 / 6) / (4 / 4 + 4 / 6))]
    assert scores["rouge_2"] == [pytest.approx(100 * 2 * (1 / 3) * (1 / 5) / (1 / 3 + 1 / 5))]
    assert scores["rouge_l"] == [pytest.approx(100 * 2 * (2 / 4) * (2 / 6) / (2 / 4 + 2 / 6))]
    assert response_scores(ResponseMetric.rouge, ["zebra"], [["the cat", "Zebra!"]])["rouge_l"] == [100.0]
    assert response_scores(ResponseMetric.rouge, [""], [["the cat"]])["rouge_l"] == [0.0]


# Examples of SQuAD's own evaluation script: articles, punctuation and case do not count; the best answer counts.
@pytest.mark.parametrize(
    ("response", "answers", "exact", "f1"),
    [
        ("The Denver Broncos!", ["Denver Broncos", "Broncos"], 100.0, 100.0),
        ("Broncos of Denver", ["Denver Broncos"], 0.0, 80.0),
        ("an apple a day", ["apple day"], 100.0, 100.0),
        ("308 points", ["308"], 0.0, 200 / 3),
        ("", ["308"], 0.0, 0.0),
        ("no", ["yes"], 0.0, 0.0),
    ],
)
def test_squads_scores(response: str, answers: list[str], exact: float, f1: float) -> None:
    scores = response_scores(ResponseMetric.squad, [response], [answers])
    assert scores["exact_match"] == [exact]
    assert scores["f1"] == [pytest.approx(f1)]


def test_squads_normalisation() -> None:
    assert normalized("  The  U.S.A., an   anthem ") == "usa anthem"
    assert squad_f1("a", "the") == 0.0


@pytest.mark.parametrize(
    ("code", "is_python"),
    [
        ("from django . conf import settings", True),
        ("if self . x :", True),
        ("else :", True),
        ("except ( A , B ) as e :", True),
        ("elif x > 3 :", True),
        ("finally :", True),
        ("@ property", True),
        ("def f ( self , x = 3 ) :", True),
        ("return x", True),
        ("return return", False),
        ("x = (", False),
        ("for :", False),
        ("\0", False),
    ],
)
def test_a_line_of_python_parses(code: str, is_python: bool) -> None:
    assert parses(code) is is_python


def test_exact_match_knows_no_amount_of_white_space() -> None:
    scores = response_scores(
        ResponseMetric.exact_match, ["x  = 3 ", "x = 4", "x="], [["x = 3"], ["x = 3", "x = 4"], ["x"]]
    )
    assert scores == {"exact_match": [100.0, 100.0, 0.0], "parses": [100.0, 100.0, 0.0]}
    summary = summarized(ResponseMetric.exact_match, scores)
    assert summary["exact_match"].value == pytest.approx(200 / 3)


def test_sentences_end_at_marks_before_white_space() -> None:
    assert sentences("Version 2.0 is new. Is it? Yes!  See\nx.\n\nEnd") == [
        "Version 2.0 is new.", "Is it?", "Yes!", "See\nx.", "End"
    ]  # fmt: skip
    assert (first_sentence("One. Two."), first_sentence("")) == ("One.", "")


def test_the_sentence_that_shares_most_words_is_the_first_of_the_best() -> None:
    context = "The sea is blue. The moon is a stone. The moon shines."
    assert most_similar_sentence(context, "What is the moon?") == "The moon is a stone."
    assert most_similar_sentence(context, "Who?") == "The sea is blue."


def _example(answer: str, **fields: str) -> Example:
    return Example("here", fields, [answer])


def test_each_metric_has_its_baseline() -> None:
    train = [_example("a = 1", text="set a to one"), _example("return b", text="return the value of b")]
    asked = [_example("?", text="return b")]
    assert simple_responses(ResponseMetric.exact_match, train, asked) == (
        "response of the nearest training prompt",
        ["return b"],
    )
    assert simple_responses(ResponseMetric.rouge, train, [_example("?", text="A. B.", other="C.")]) == (
        "first sentence",
        ["A."],
    )
    assert simple_responses(ResponseMetric.squad, train, asked) is None
    question = _example("?", context="A b. C d.", question="d?")
    named = simple_responses(ResponseMetric.squad, [], [question])
    assert named is not None and named[1] == ["C d."]


@pytest.mark.parametrize(
    ("response", "answer", "share"),
    [("abcd", "abcd", 100.0), ("abxd", "abcd", 75.0), ("ab", "abcd", 50.0), ("abcdef", "abc", 50.0), ("", "ab", 0.0)],
)
def test_symbols_count_in_their_places(response: str, answer: str, share: float) -> None:
    scores = response_scores(ResponseMetric.symbols, [response], [[answer]])
    assert scores == {"symbols": [pytest.approx(share)]}


def test_the_baseline_of_symbols_is_the_likeliest_one_of_each_place() -> None:
    train = [Example("", {}, [text]) for text in ("ab", "ac", "bc", "bcd")]
    assert simple_responses(ResponseMetric.symbols, train, [Example("", {}, ["xyz"]), Example("", {}, ["x"])]) == (
        "likeliest symbol of each place",
        ["acd", "a"],
    )
