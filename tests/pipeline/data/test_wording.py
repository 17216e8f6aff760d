"""Texts in the Treebank's form, and their sentences."""

from pathlib import Path

import pytest

from transloom.pipeline.data.document_files import Unit, read_file
from transloom.pipeline.data.wording import sentences, treebank


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


def test_sentences_of_a_file_go_on_over_lines_and_end_with_lines_that_end_one(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("One line.\nand another\nthat goes on. Third\n\nFourth without an end\n\nfifth\n")
    read = list(read_file(file, Unit.sentence, "text", 1000))
    expected = ["One line.", "and another that goes on.", "Third", "Fourth without an end", "fifth"]
    assert [text for _, text in read] == expected
    assert [place for place, _ in read] == [f"{file} line {line}" for line in (1, 2, 2, 5, 7)]
