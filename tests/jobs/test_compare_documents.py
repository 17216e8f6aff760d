"""`transloom compare` of language models: bits per byte with tests over documents, and what is refused."""

import re
from pathlib import Path

import pytest
from comparable import DOCUMENTS, GOOD, make_documents, make_language_run, make_run, write_lines

from transloom.jobs.commands.compare import main
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json

CHARACTERS = ("tokenizer=characters", "model.layers=2")


def compare(root: Path, *words: str) -> dict:
    main([*words, f"output_dir={root}", "tracking=off"])
    (file,) = (root / "comparisons").glob("*/comparison.json")
    return read_json(file)


def refused(root: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        main([*words, f"output_dir={root}", "tracking=off"])
    assert not (root / "comparisons").exists()
    return str(caught.value)


def test_two_tokenizers_compare_on_the_same_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_documents(tmp_path)
    make_language_run(tmp_path, "bytes", corpus, [2.0])
    make_language_run(tmp_path, "letters", corpus, [2.25, 2.5], *CHARACTERS)
    found = compare(tmp_path, "bytes", "letters")
    said = capsys.readouterr().out
    sizes = [len(text) for text in DOCUMENTS]
    letters = sum((2.25, 2.5)[i % 2] * size for i, size in enumerate(sizes)) / sum(sizes)
    systems = found["systems"]
    assert found["split"] == "test" and found["documents"] == 40 and found["bytes"] == sum(sizes)
    tested = systems["letters"]["scores"]["bits_per_byte"]
    assert tested["score"] == pytest.approx(letters) and tested["difference"] == pytest.approx(letters - 2.0)
    assert tested["low"] < letters < tested["high"] and tested["p_bootstrap"] < 0.001
    assert systems["letters"]["documents"] == {"better": 0, "worse": 40, "equal": 0}
    assert systems["bytes"]["training"]["text_tokens_per_second"] == 100
    assert found["reach"]["bits_per_byte"] == 3.0  # the lowest of both
    assert {row["name"]: row["values"]["letters"] for row in found["settings"]}["model.layers"] == "2"
    assert found["simple_models"] == {"5-gram of bytes": 2.5}
    assert re.search(r"^letters +2\.3\d+ +2\.\d+ to 2\.\d+ +\+0\.3\d+ +< 0\.001 ", said, re.MULTILINE)
    assert re.search(r"^5-gram of bytes +2\.5000 +\+0\.5000", said, re.MULTILINE)
    assert "to bytes (p < 0.001): worse." in said
    assert "A 5-gram of bytes has 2.5000 bits per byte on the same documents: beaten by all of them." in said
    assert "transloom generate bytes" in said
    (folder,) = (tmp_path / "comparisons").iterdir()
    html = (folder / "report.html").read_bytes().decode()
    assert "Documents that differ most" in html and "def f" in html and "Sentences side by side" not in html
    assert {path.name for path in folder.iterdir()} == {
        *("comparison.json", "report.html", "curves.png", "curves-dark.png")
    }


def test_equal_models_are_not_called_different(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = make_documents(tmp_path)
    for name in ("one", "two"):
        make_language_run(tmp_path, name, corpus, [3.0])
    found = compare(tmp_path, "one", "two")
    assert found["systems"]["two"]["scores"]["bits_per_byte"]["p_bootstrap"] == 1.0
    said = capsys.readouterr().out
    assert "no difference that 40 documents can show" in said and "not beaten by one, two" in said


def test_without_a_test_set_validation_is_compared_and_named(tmp_path: Path, capsys) -> None:
    corpus = make_documents(tmp_path, test=[])
    make_language_run(tmp_path, "one", corpus, [2.0])
    make_language_run(tmp_path, "two", corpus, [1.5, 1.6])
    found = compare(tmp_path, "one", "two")
    assert found["split"] == "validation" and found["documents"] == 10
    said = capsys.readouterr().out
    assert "Compared on the validation set" in said and "to one (p < 0.001): better." in said


def test_other_documents_are_refused(tmp_path: Path) -> None:
    make_language_run(tmp_path, "one", make_documents(tmp_path), [2.0])
    other = make_documents(tmp_path, "others", [*DOCUMENTS[:-1], "another"])
    make_language_run(tmp_path, "two", other, [2.0])
    assert "the run two was evaluated on other documents than the run one" in refused(tmp_path, "one", "two")


def test_a_translation_and_a_language_model_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path, "words", GOOD)
    make_language_run(tmp_path, "texts", make_documents(tmp_path), [2.0])
    for first, second in (("words", "texts"), ("texts", str(write_lines(tmp_path / "mine.de", GOOD)))):
        said = refused(tmp_path, first, second)
        assert said.startswith("task: ") and "language_model" in said and "translation" in said


def test_what_is_about_translations_is_refused(tmp_path: Path) -> None:
    corpus = make_documents(tmp_path)
    for name in ("one", "two"):
        make_language_run(tmp_path, name, corpus, [3.0])
    assert refused(tmp_path, "one", "two", "references=mine.de").startswith("references: ")
    assert refused(tmp_path, "one", "two", "reach=2.5").startswith("reach=2.5: no run reached that")


@pytest.mark.parametrize("content", ["", "no JSON\n", '{"bits": 1.0, "bytes": 7}\n' * 40, '{"bits": "x"}\n'])
def test_a_damaged_file_of_bits_is_refused(tmp_path: Path, content: str) -> None:
    corpus = make_documents(tmp_path)
    make_language_run(tmp_path, "one", corpus, [3.0])
    folder = make_language_run(tmp_path, "two", corpus, [3.0])
    (file,) = folder.glob("evaluation/*/test.hypotheses")
    file.write_text(content)
    assert refused(tmp_path, "one", "two").startswith(str(file))
