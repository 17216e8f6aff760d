"""A corpus behind URLs is the same corpus as on the disk."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
from s3_server import BUCKET, S3Server

from transloom.pipeline.data.clean import CleanConfig
from transloom.pipeline.data.corpus import corpus_fingerprint
from transloom.pipeline.data.corpus_config import CorpusConfig, CorpusKind, SplitConfig
from transloom.pipeline.data.prepare import prepare
from transloom.pipeline.data.remote import with_local_files
from transloom.pipeline.data.tokenizer import TokenizerConfig
from transloom.pipeline.errors import UserError

LINES = {"en": [f"A dog runs {i} times." for i in range(200)], "de": [f"Ein Hund rennt {i} Mal." for i in range(200)]}


@pytest.fixture
def folder(s3: S3Server, tmp_path: Path) -> Path:
    """Text files, here and in the bucket; one of them compressed."""
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "train.en.gz").write_bytes(gzip.compress("\n".join(LINES["en"]).encode(), mtime=0))
    (folder / "train.de").write_bytes("\n".join(LINES["de"]).encode())
    for file in folder.iterdir():
        s3.fs().put_file(str(file), f"{BUCKET}/text/{file.name}")
    return folder


def corpus_in(path: str) -> CorpusConfig:
    train = SplitConfig(source="train.en", target="train.de")
    return CorpusConfig(kind=CorpusKind.text, name="mine", path=path, train=train, held_out=20)


def test_the_same_shards_come_of_it(folder: Path, tmp_path: Path) -> None:
    tokenizer = TokenizerConfig(vocab_size=300)
    expected = prepare(corpus_in(str(folder)), CleanConfig(), tokenizer, tmp_path / "a")
    remote = with_local_files(corpus_in(f"s3://{BUCKET}/text"), tmp_path / "b" / "downloads")
    found = prepare(remote, CleanConfig(), tokenizer, tmp_path / "b")
    assert found.shards.manifest["key"] == expected.shards.manifest["key"]
    assert found.corpus.manifest["inputs"] == expected.corpus.manifest["inputs"]


def test_files_can_be_named_one_by_one_and_changes_are_noticed(folder: Path, tmp_path: Path, s3: S3Server) -> None:
    downloads = tmp_path / "downloads"
    train = SplitConfig(source=f"s3://{BUCKET}/text/train.en.gz", target=str(folder / "train.de"))
    corpus = replace(corpus_in(""), path=None, train=train)
    before = corpus_fingerprint(with_local_files(corpus, downloads))
    assert before == corpus_fingerprint(corpus_in(str(folder)))
    assert with_local_files(corpus, downloads).train.target == str(folder / "train.de")
    s3.fs().pipe_file(f"{BUCKET}/text/train.en.gz", gzip.compress(b"other text"))
    assert corpus_fingerprint(with_local_files(corpus, downloads)) != before


def test_files_of_a_data_set_are_fetched_where_they_are_named(s3: S3Server, tmp_path: Path) -> None:
    s3.fs().pipe_file(f"{BUCKET}/rows.jsonl", b'{"en": "A dog.", "de": "Ein Hund."}\n')
    files = {
        "train": f"s3://{BUCKET}/rows.jsonl",
        "test": "hf://datasets/some/test.jsonl",
        "validation": "s3://b/*.jsonl",
    }
    corpus = CorpusConfig(
        kind=CorpusKind.dataset, dataset="json", data_files=files, train=SplitConfig(split="train"), name="rows"
    )
    local = with_local_files(corpus, tmp_path).data_files
    assert Path(local["train"]).read_bytes().startswith(b'{"en"')
    assert (local["test"], local["validation"]) == (files["test"], files["validation"])


def test_a_file_that_is_not_there_is_named_by_its_setting(folder: Path, tmp_path: Path) -> None:
    corpus = replace(corpus_in(f"s3://{BUCKET}/text"), test=SplitConfig(source="test.en", target="test.de"))
    with pytest.raises(UserError, match=rf"corpus.test.source: no such file: s3://{BUCKET}/text/test.en \(nor"):
        with_local_files(corpus, tmp_path)
    assert with_local_files(corpus_in(str(folder)), tmp_path) == corpus_in(str(folder))
