"""Terms: what a file of them says, and which of them a text has."""

from pathlib import Path

import pytest

from transloom.pipeline.data.terminology import Terminology
from transloom.pipeline.errors import UserError


def read(folder: Path, text: str) -> Terminology:
    (folder / "terms.tsv").write_text(text, encoding="utf-8")
    return Terminology.read(folder / "terms.tsv")


def test_terms_are_whole_words_in_any_case_and_the_longest_counts(tmp_path: Path) -> None:
    terms = read(tmp_path, "machine\tMaschine\nmachine  learning\tmaschinelles Lernen\n\nC++\tC++\n狗\tHund\n")
    assert terms.targets("Machine learning, not machines: a machine.") == ["maschinelles Lernen", "Maschine"]
    assert terms.targets("machine\tlearning in C++") == ["maschinelles Lernen", "C++"]
    assert terms.targets("一只狗在跑。") == ["Hund"]
    assert terms.targets("machines and submachine") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n", "line 1: must be a source term, a tab and a target term"),
        ("a\tb\n\nc\t\n", "line 3: must be"),
        ("a\tb\nA\tc\n", "line 2: 'A' has another target term"),
        ("\n", "has no terms"),
    ],
)
def test_a_wrong_line_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^terms: .*terms\.tsv.*{message}"):
        read(tmp_path, text)
