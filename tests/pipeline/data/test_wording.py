"""Texts in the Treebank's form, and their sentences."""

import pytest

from pipeline.data.wording import sentences, treebank


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's a “charming” and often affecting journey.", "it 's a `` charming '' and often affecting journey"),
        ("They didn't; we won't, I'm sure!", "they did n't we wo n't , i 'm sure !"),
        ("a B-movie (off-kilter)", "a b movie lrb off kilter rrb"),
        ("'We'll see,' said Pooh.", "` we 'll see , ' said pooh"),
        ("the '90s clichés", "the '90s cliches"),
        ("one\ntwo.", "one\ntwo"),
    ],
)
def test_treebank(text: str, expected: str) -> None:
    assert treebank(text) == expected
    assert treebank(expected) == expected


def test_sentences_end_at_full_stops_that_are_no_abbreviations_s() -> None:
    text = 'He\nsaid. "No way!" she cried.  Mr. Brown came at 5.30 p.m. and J. Smith left. Really? Yes'
    expected = [
        "He said.",
        '"No way!" she cried.',
        "Mr. Brown came at 5.30 p.m. and J. Smith left.",
        "Really?",
        "Yes",
    ]
    assert sentences(text) == expected
    assert sentences(" \n ") == [] and sentences("no end") == ["no end"]
