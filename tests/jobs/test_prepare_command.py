"""What `transloom prepare` prints and refuses; no Ray is started."""

import dataclasses
from pathlib import Path

import pytest

from transloom.jobs.config.compose import load_config
from transloom.jobs.runs.summary import print_cleaning, print_cleaning_of
from transloom.jobs.training.prepare import found_prepared, refuse_long_sentences
from transloom.pipeline.data.clean import CleanConfig
from transloom.pipeline.data.corpus_config import CorpusConfig, CorpusKind, SplitConfig
from transloom.pipeline.data.documents import DocumentsConfig
from transloom.pipeline.data.prepare import Prepared, prepare
from transloom.pipeline.data.tokenizer import TokenizerConfig
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import Stage

TOKENIZER = TokenizerConfig(vocab_size=500)


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def corpus_of(folder: Path, source: list[str], target: list[str]) -> CorpusConfig:
    write_lines(folder / "a.en", source)
    write_lines(folder / "a.de", target)
    files = SplitConfig(str(folder / "a.en"), str(folder / "a.de"))
    return CorpusConfig(kind=CorpusKind.text, name="a", train=files, held_out=10)


SOURCE = [f"line {i} of the text" for i in range(100)]
TARGET = [f"Zeile {i} des Textes" for i in range(100)]


def said(capsys: pytest.CaptureFixture[str], prepared: Prepared) -> str:
    capsys.readouterr()
    print_cleaning(prepared)
    return capsys.readouterr().out


def test_what_was_left_out_is_printed_also_when_it_was_prepared_before(tmp_path, capsys):
    corpus = corpus_of(tmp_path, SOURCE, [*TARGET[:95], "", *["x " * 60] * 4])
    outputs = []
    for is_done in (False, True):
        prepared = prepare(corpus, CleanConfig(max_words=50), TOKENIZER, tmp_path / "out")
        assert prepared.corpus.skipped is is_done
        outputs.append(said(capsys, prepared))
    assert outputs[0] == outputs[1]
    lines = outputs[0].splitlines()
    counts = prepared.corpus.manifest["counts"]
    left_out = sum(counts["dropped"].values())
    assert lines[0] == (
        f"Cleaned     100 training pairs read: {80 - left_out} kept, {left_out} left out ({left_out}.0%), "
        "10 held out for validation, 10 held out for test"
    )
    long = counts["dropped"]["too_long"]
    assert f"too_long  {long:>7}  clean.max_words=50 clean.max_bytes=10000".split() in [line.split() for line in lines]
    assert any(line.startswith("  too_long: line 9") and ", 60 words: line 9" in line for line in lines)


@pytest.mark.parametrize(("bad", "warns"), [(4, False), (8, True)])
def test_a_large_share_is_warned_of(tmp_path, capsys, bad, warns):
    files = SplitConfig(str(tmp_path / "b.en"), str(tmp_path / "b.de"))
    write_lines(tmp_path / "b.en", [f"other {i}" for i in range(10)])
    write_lines(tmp_path / "b.de", [f"andere {i}" for i in range(10)])
    corpus = corpus_of(tmp_path, SOURCE, [*[f"{i} " + "x " * 50 for i in range(bad)], *TARGET[bad:]])
    corpus = dataclasses.replace(corpus, validation=files, test=files)
    output = said(capsys, prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out"))
    warning = f"warning: {bad:.1f}% of the training pairs were left out, most by length_ratio."
    assert (warning in output) is warns
    assert "10 of the 10 test pairs have a sentence that stands in validation, too" in output


def test_sentences_of_the_test_set_that_stay_are_warned_of(tmp_path, capsys):
    files = SplitConfig(str(tmp_path / "b.en"), str(tmp_path / "b.de"))
    write_lines(tmp_path / "b.en", SOURCE[:7])
    write_lines(tmp_path / "b.de", TARGET[:7])
    corpus = dataclasses.replace(corpus_of(tmp_path, SOURCE, TARGET), validation=files, test=files)
    output = said(capsys, prepare(corpus, CleanConfig(decontaminate=False), TOKENIZER, tmp_path / "out"))
    assert "warning: 7 of the training pairs have a sentence that stands in validation or test, and stay" in output
    output = said(capsys, prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out"))
    assert "93 kept, 7 left out (7.0%)" in output
    assert "and stay" not in output


def test_documents_are_left_out_by_settings_of_the_corpus(tmp_path, capsys):
    counts = {"read": 100, "dropped": {"contaminated": 90, "invalid_utf8": 2}, "held_out": {}}
    counts |= {"splits": {"train": {"documents": 8}}, "examples": {"contaminated": ["a"], "invalid_utf8": ["b"]}}
    config = DocumentsConfig(decontaminate=["a.tsv"])
    print_cleaning_of(Stage(tmp_path, {"config": {}, "counts": counts}, False, 0.0), config)
    output = capsys.readouterr().out
    assert "contaminated         90  corpus.decontaminate" in output
    assert "invalid_utf8          2  corpus.invalid" in output
    assert "warning" not in output, "to leave them out was asked for, and none stays"


def test_a_corpus_prepared_before_this_was_recorded_prints_nothing(tmp_path, capsys):
    prepared = prepare(corpus_of(tmp_path, SOURCE, TARGET), CleanConfig(), TOKENIZER, tmp_path / "out")
    counts = {key: prepared.corpus.manifest["counts"][key] for key in ("splits", "dropped")}
    old = Stage(prepared.corpus.folder, prepared.corpus.manifest | {"counts": counts}, True, 0.0)
    assert said(capsys, dataclasses.replace(prepared, corpus=old)) == ""


LONG_LINES = {
    "one word": "x" + "".join(chr(97 + i * i % 23) for i in range(3000)),
    "words": "und " * 240,
    "Japanese": "今日赤い家は緑の犬を売る。" * 38,  # no more than clean.max_words allows
}


@pytest.mark.parametrize("key", ["model.max_positions", "batch.micro_tokens"])
@pytest.mark.parametrize("long", LONG_LINES)
def test_a_line_too_long_is_told_with_a_limit_that_drops_it(tmp_path, long, key):
    target = list(TARGET)
    target[50], source = LONG_LINES[long], list(SOURCE)
    source[50] = "word " * 240
    corpus = corpus_of(tmp_path, source, target)
    files = SplitConfig(str(tmp_path / "b.en"), str(tmp_path / "b.de"))
    write_lines(tmp_path / "b.en", ["a b"])
    write_lines(tmp_path / "b.de", ["c d"])
    corpus = dataclasses.replace(corpus, validation=files, test=files)
    clean = CleanConfig(max_ratio=1000.0)
    config = load_config([f"output_dir={tmp_path / 'out'}", f"{key}=64"])
    prepared = prepare(corpus, clean, TOKENIZER, tmp_path / "out")
    with pytest.raises(UserError, match=rf"^{key}: 64 is less than .*corpus\.train.*clean\.max_bytes=(\d+)") as told:
        refuse_long_sentences(config, prepared.corpus.folder, prepared.shards.folder)
    assert "which leaves out 1 pairs" in str(told.value)
    limit = int(str(told.value).partition("clean.max_bytes=")[2].partition(",")[0])
    mended = prepare(corpus, dataclasses.replace(clean, max_bytes=limit), TOKENIZER, tmp_path / "out")
    assert mended.corpus.manifest["counts"]["dropped"] == {"too_long": 1}
    refuse_long_sentences(config, mended.corpus.folder, mended.shards.folder)


def test_a_long_sentence_of_validation_is_not_to_be_cleaned(tmp_path):
    files = SplitConfig(str(tmp_path / "b.en"), str(tmp_path / "b.de"))
    write_lines(tmp_path / "b.en", ["a b", LONG_LINES["one word"]])
    write_lines(tmp_path / "b.de", ["c d", "e"])
    corpus = dataclasses.replace(corpus_of(tmp_path, SOURCE, TARGET), validation=files)
    prepared = prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out")
    config = load_config([f"output_dir={tmp_path / 'out'}", "model.max_positions=64"])
    with pytest.raises(UserError, match=r"^model\.max_positions: .*corpus\.validation.*never cleaned"):
        refuse_long_sentences(config, prepared.corpus.folder, prepared.shards.folder)


def test_files_that_are_something_else_are_refused_before_ray_comes_up(tmp_path):
    corpus_of(tmp_path, ["{}"] * 50, TARGET[:50])
    words = ["corpus=text", f"output_dir={tmp_path / 'out'}"]
    words += [f"corpus.train.source={tmp_path / 'a.en'}", f"corpus.train.target={tmp_path / 'a.de'}"]
    with pytest.raises(UserError, match=r"^corpus\.train: .*a\.en holds JSON"):
        found_prepared(load_config(words))
