"""Sentences side by side: every word is shown, and those that differ are marked."""

from hypothesis import given
from hypothesis import strategies as st

from transloom.pipeline.compare.sentences import Mark, marked, most_different

TEXT = st.lists(
    st.sampled_from(["ein", "Hund", "rennt", "<b>", "&", ".", " ", "\u3000", "की", "don't"]), max_size=9
).map("".join)


@given(TEXT, TEXT, TEXT, TEXT)
def test_all_of_the_text_is_there(one: str, other: str, third: str, reference: str) -> None:
    said = {"one": one, "other": other, "third": third}
    for name, pieces in marked(said, reference).items():
        assert "".join(text for text, _ in pieces) == said[name]
        assert all(mark is not pieces[i + 1][1] for i, (_, mark) in enumerate(pieces[:-1]))


@given(TEXT, TEXT)
def test_what_is_the_same_is_not_marked(text: str, reference: str) -> None:
    for words in marked({"one": text, "other": text}, reference).values():
        assert {mark for _, mark in words} <= {Mark.same}


def test_a_word_that_differs_is_right_where_the_reference_has_it() -> None:
    found = marked({"one": "ein Hund rennt, sagt er", "other": "ein alter Wolf rennt"}, "ein Hund läuft weg")
    assert found == {
        "one": [("ein ", Mark.same), ("Hund", Mark.right), (" rennt", Mark.same), (", sagt er", Mark.wrong)],
        "other": [("ein ", Mark.same), ("alter Wolf", Mark.wrong), (" rennt", Mark.same)],
    }


def test_the_farthest_apart_come_first_and_those_that_are_not_do_not_come() -> None:
    scores = {"one": [50.0, 10.0, 80.0], "other": [50.0, 90.0, 70.0]}
    said = {"one": ["a", "b", "c"], "other": ["a", "x", "y"]}
    found = most_different(scores, said, ["a", "x", "c"], None, count=5)
    assert [(sentence.line, sentence.source) for sentence in found] == [(2, None), (3, None)]
    assert [(one.system, one.chrf) for one in found[0].said] == [("one", 10.0), ("other", 90.0)]
    assert most_different(scores, said, ["a", "x", "c"], ["p", "q", "r"], count=1)[0].source == "q"
    comet = {"one": [0.5, 0.25, 0.125], "other": [0.0, 0.75, 1.0]}
    assert [one.comet for one in most_different(scores, said, ["a", "x", "c"], None, 1, comet)[0].said] == [0.25, 0.75]
