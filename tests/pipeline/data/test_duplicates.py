"""Duplicates are found over a whole corpus, however it is cut and whoever reads it."""

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from transloom.pipeline.data.clean import CleanConfig
from transloom.pipeline.data.corpus_config import CorpusConfig, CorpusKind, SplitConfig
from transloom.pipeline.data.duplicates import find_duplicates, write_digests
from transloom.pipeline.data.prepare import prepare
from transloom.pipeline.data.tokenizer import TokenizerConfig
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import sha256_file
from transloom.pipeline.progress import no_progress

TOKENIZER = TokenizerConfig(vocab_size=300)


@pytest.mark.parametrize("partition", [3, 50, 10_000])
def test_the_first_of_equal_texts_is_none(tmp_path, monkeypatch, partition):
    monkeypatch.setattr("transloom.pipeline.data.duplicates.PARTITION_PAIRS", partition)
    texts = [[b"%d" % number for number in np.random.default_rng(part).integers(0, 150, 100)] for part in range(4)]
    seen: set[bytes] = set()
    expected = [[text in seen or seen.add(text) is not None for text in part] for part in texts]
    files = [tmp_path / f"{i}.npy" for i in range(4)]
    for file, part in zip(files, texts, strict=True):
        write_digests(file, part, range(len(part)))
    found = find_duplicates(files, [100] * 4, map, no_progress)
    assert [part.tolist() for part in found] == expected


def write_corpus(folder: Path, source: list[str], target: list[str]) -> CorpusConfig:
    folder.mkdir()
    splits = {}
    for split, lines in {"train": (source, target), "validation": (["v"], ["w"]), "test": (["t"], ["u"])}.items():
        files = [folder / f"{split}.{side}" for side in ("en", "de")]
        for file, side in zip(files, lines, strict=True):
            file.write_text("".join(f"{line}\n" for line in side))
        splits[split] = SplitConfig(*map(str, files))
    return CorpusConfig(kind=CorpusKind.text, name="tiny", **splits)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name != "manifest.json"}


SOURCE = [f"the line {i % 70} is read" for i in range(100)]
TARGET = [f"Zeile {i % 70} wird gelesen" for i in range(100)]


def test_duplicates_go_with_their_places_and_only_as_whole_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr("transloom.pipeline.data.portions.PORTION_PAIRS", 16)
    target = [*TARGET[:99], "etwas anderes"]
    source = [*SOURCE[:98], " the  line 28 is read ", SOURCE[99]]
    corpus = write_corpus(tmp_path / "in", source, target)
    counts = prepare(corpus, CleanConfig(drop_duplicates=True), TOKENIZER, tmp_path / "out").corpus.manifest["counts"]
    assert counts["dropped"] == {"duplicate": 29}
    assert counts["examples"]["duplicate"] == [
        f"line {71 + i}, seen before: the line {i} is read | Zeile {i} wird gelesen" for i in range(3)
    ]
    train = counts["splits"]["train"]
    assert (train["pairs"], train["source_words"], train["target_words"]) == (71, 71 * 5, 70 * 4 + 2)
    # The border between the sides counts.
    other = write_corpus(tmp_path / "border", ["a b", "a"], ["c", "b c"])
    assert prepare(other, CleanConfig(drop_duplicates=True), TOKENIZER, tmp_path / "out").corpus.manifest["counts"][
        "dropped"
    ] == {}  # fmt: skip


def test_near_duplicates_differ_in_case_digits_and_punctuation_alone(tmp_path):
    source = ["On 3 May, we met.", "on 12 may we met", "On 3 May we met him.", "Été", "ete!", "12", "13"]
    target = ["Am 3. Mai.", "am 12. mai", "Am 3. Mai.", "x", "X", "y", "y"]
    corpus = write_corpus(tmp_path / "in", source, target)
    prepared = prepare(corpus, CleanConfig(drop_near_duplicates=True), TOKENIZER, tmp_path / "out")
    assert prepared.corpus.manifest["counts"]["dropped"] == {"near_duplicate": 2}
    kept = (prepared.corpus.folder / "train.source").read_text().splitlines()
    assert kept == [source[i] for i in (0, 2, 3, 5, 6)]


@pytest.mark.parametrize("size", [7, 16, 1000])
def test_bytes_depend_neither_on_portions_nor_on_processes(tmp_path, monkeypatch, size):
    corpus = write_corpus(tmp_path / "in", SOURCE, TARGET)
    clean = CleanConfig(drop_duplicates=True)
    whole = prepare(corpus, clean, TOKENIZER, tmp_path / "whole")
    monkeypatch.setattr("transloom.pipeline.data.portions.PORTION_PAIRS", size)
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        cut = prepare(corpus, clean, TOKENIZER, tmp_path / "cut", map_tasks=pool.map)
    assert contents(whole.corpus.folder) == contents(cut.corpus.folder)
    assert whole.corpus.manifest["counts"] == cut.corpus.manifest["counts"]


def test_a_build_that_was_ended_goes_on_with_the_portions_that_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr("transloom.pipeline.data.portions.PORTION_PAIRS", 16)
    monkeypatch.setattr("transloom.pipeline.data.prepare.FEW_PAIRS", 0)
    corpus = write_corpus(tmp_path / "in", SOURCE, TARGET)
    clean = CleanConfig(drop_duplicates=True)
    whole = prepare(corpus, clean, TOKENIZER, tmp_path / "whole", shard_pairs=16)
    calls: list[str] = []

    def ended_after(count: int):
        def map_tasks(function, items):
            for item in items:
                if len(calls) >= count:
                    raise KeyboardInterrupt
                calls.append(function.__name__)
                yield function(item)

        return map_tasks

    for ending, name in ((3, "clean_portion"), (9, "tokenize_shard")):
        with pytest.raises(KeyboardInterrupt):
            prepare(corpus, clean, TOKENIZER, tmp_path / "out", map_tasks=ended_after(ending), shard_pairs=16)
        assert calls[-1] == name
    done = prepare(corpus, clean, TOKENIZER, tmp_path / "out", map_tasks=ended_after(100), shard_pairs=16)
    assert Counter(calls) == {"clean_portion": 7, "tokenize_shard": 7}
    for stage in ("corpus", "tokenizer", "shards"):
        assert contents(getattr(done, stage).folder) == contents(getattr(whole, stage).folder)
    assert len(list((tmp_path / "out").glob("*/*"))) == 3  # no parts are left


def test_a_line_that_is_no_text_leaves_no_parts(tmp_path):
    corpus = write_corpus(tmp_path / "in", SOURCE, TARGET)
    Path(corpus.train.target or "").write_bytes(b"\xff\n" * 100)
    with pytest.raises(UserError, match="UTF-8"):
        prepare(corpus, CleanConfig(), TOKENIZER, tmp_path / "out")
    assert list((tmp_path / "out" / "corpora").iterdir()) == []
