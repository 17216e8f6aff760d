"""Documents that hold sentences of a later task's files are left out, counted and named."""

import json
from pathlib import Path

from transloom.pipeline.data.document_files import Unit
from transloom.pipeline.data.documents import DocumentsConfig, DocumentsKind, HeldOutConfig, SourceConfig, Wording
from transloom.pipeline.data.overlap import Sentences, read_sentences
from transloom.pipeline.data.prepare_documents import prepare_documents
from transloom.pipeline.data.text_tokenizer import TextTokenizerConfig

LONG = "it does n't matter who won the clichés here , it 's a film"  # 13 words, 12 of them counted apart
OF_FIVE = "a lovely film of ours"


def test_eight_words_in_a_row_or_a_whole_shorter_sentence_are_found_however_they_are_written() -> None:
    others = Sentences([LONG, OF_FIVE, "dull"])
    assert others.shared("And: It doesn't matter WHO won the cliches — he said") == "it does n t matter who won the"
    assert others.shared("it does not matter who won the cliches here") is None, "seven words in a row at most"
    assert others.shared("This is a LOVELY film, of ours!") == "a lovely film of ours"
    assert others.shared("a lovely film of theirs") is None
    assert others.shared("Dull!") == "dull" and others.shared("a dull film") is None
    assert Sentences().shared("any text") is None


def test_a_text_that_is_a_part_of_a_sentence_is_found() -> None:
    others = Sentences([LONG])
    assert others.shared("Matter who won the clichés?") == "matter who won the cliches"
    assert others.shared("Matter who won the clichés, he said") is None, "seven words in a row of a longer text"
    assert others.shared("won the clichés") is None, "three words occur by chance"


def test_sentences_are_lines_cells_and_texts_of_json(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("one two\t1\nthree\t0\n")
    (tmp_path / "c.csv").write_text('"one, two",1\nthree,0\n')
    assert list(read_sentences(tmp_path / "c.csv")) == ["one, two", "1", "three", "0"]
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "four\nfive", "of": ["six"], "label": 1}) + "\n")
    assert list(read_sentences(tmp_path / "a.tsv")) == ["one two", "1", "three", "0"]
    assert list(read_sentences(tmp_path / "b.jsonl")) == ["four", "five", "six"]


def test_a_corpus_has_none_of_the_sentences_and_says_how_many_documents_it_lost(tmp_path: Path) -> None:
    texts = [f"This is the {i}. sentence, and there's nothing in it." for i in range(30)]
    texts[7] = f"He wrote: {LONG}."
    texts[20] = "It is a lovely film of ours, I think."
    (tmp_path / "a.txt").write_text("\n".join(texts))
    (tmp_path / "test.tsv").write_text(f"{LONG}\t1\n{OF_FIVE}\t0\n")
    config = DocumentsConfig(
        kind=DocumentsKind.text, name="a", train=SourceConfig(str(tmp_path / "a.txt")), unit=Unit.line,
        held_out=HeldOutConfig(validation=0.2, test=0.0), wording=Wording.treebank,
        decontaminate=[str(tmp_path / "*.tsv")],
    )  # fmt: skip
    prepared = prepare_documents(config, TextTokenizerConfig(vocab_size=300), tmp_path / "out")
    counts = prepared.corpus.manifest["counts"]
    assert counts["dropped"] == {"contaminated": 2}
    assert "a.txt line 8: shares 'it does n t" in counts["examples"]["contaminated"]
    kept = "".join((prepared.corpus.folder / f"{split}.text").read_text() for split in ("train", "validation"))
    assert "lovely" not in kept and "matter" not in kept and "this is the 3 sentence , and there 's nothing" in kept
    (tmp_path / "test.tsv").write_text(f"{LONG}\t1\n")
    other = prepare_documents(config, TextTokenizerConfig(vocab_size=300), tmp_path / "out")
    assert other.corpus.folder != prepared.corpus.folder and other.corpus.manifest["counts"]["dropped"] == {
        "contaminated": 1
    }
