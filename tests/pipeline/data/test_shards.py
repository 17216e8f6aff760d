import errno
from contextlib import contextmanager

import numpy as np
import pytest

from transloom.pipeline.data import shards
from transloom.pipeline.data.pairs import open_pairs
from transloom.pipeline.data.shards import shard_tasks, write_shard
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import write_json

SOURCE = [[5, 3], [3], [9, 8, 7, 3], [65_535, 3], [6, 3]]
TARGET = [[3], [4, 3], [3], [1, 3], [2, 2, 3]]


def write(folder, sizes, vocab_size=65_536):
    start = 0
    for index, size in enumerate(sizes):
        for side, sentences in (("source", SOURCE), ("target", TARGET)):
            arrays = [np.array(ids, dtype=np.int32) for ids in sentences[start : start + size]]
            write_shard(folder, f"train-{index:05d}", side, arrays, vocab_size)
        start += size
    write_json(folder / "manifest.json", {"counts": {"splits": {"train": {"shards": len(sizes)}}}})


@pytest.mark.parametrize("sizes", [[5], [2, 3], [1, 1, 1, 1, 1]])
def test_pairs_come_back_whatever_the_shards(tmp_path, sizes):
    write(tmp_path, sizes)
    pairs = open_pairs(tmp_path, "train")
    assert len(pairs) == 5
    assert [pairs.get("source", i).tolist() for i in range(5)] == SOURCE
    assert [pairs.get("target", i).tolist() for i in range(5)] == TARGET
    assert pairs.lengths_of("source").tolist() == [len(ids) for ids in SOURCE]
    assert pairs.lengths_of("target").tolist() == [len(ids) for ids in TARGET]
    assert pairs.lengths_of("source").dtype == np.int32


def test_tokens_take_two_bytes_where_they_fit_and_stay_on_disk(tmp_path):
    write(tmp_path, [5], vocab_size=65_536)
    tokens = open_pairs(tmp_path, "train").get("source", 3)
    assert tokens.dtype == np.uint16
    assert isinstance(tokens, np.memmap)
    write(tmp_path, [5], vocab_size=65_537)
    assert open_pairs(tmp_path, "train").get("source", 3).dtype == np.int32


def test_a_full_disk_says_so_however_large_the_shard(tmp_path, monkeypatch):
    @contextmanager
    def write_to_a_full_disk(path):
        with open("/dev/full", "wb") as file:
            yield file

    monkeypatch.setattr(shards, "atomic_write", write_to_a_full_disk)
    with pytest.raises(OSError) as caught:
        write_shard(tmp_path, "train-00000", "source", [np.arange(100_000)], 65_536)
    assert caught.value.errno == errno.ENOSPC


def test_plain_numpy_reads_the_files(tmp_path):
    write(tmp_path, [5])
    assert np.load(tmp_path / "train-00000.target_tokens.npy").tolist() == [3, 4, 3, 3, 1, 3, 2, 2, 3]


def test_tasks_cut_the_corpus_at_line_feeds_only(tmp_path):
    source = ["a\u2028b".encode(), b"", b"c\rd", "\u0085".encode(), b"e"]
    target = [b"1", b"22", b"333", b"4444", b"55555"]
    (tmp_path / "train.source").write_bytes(b"".join(line + b"\n" for line in source))
    (tmp_path / "train.target").write_bytes(b"".join(line + b"\n" for line in target))
    tasks = list(shard_tasks(tmp_path, tmp_path, tmp_path, "train", 2))
    assert [(task.index, task.pairs) for task in tasks] == [(0, 2), (1, 2), (2, 1)]
    for side, lines in (("source", source), ("target", target)):
        text = (tmp_path / f"train.{side}").read_bytes()
        starts = [text[getattr(task, f"{side}_offset") :].split(b"\n")[0] for task in tasks]
        assert starts == [lines[0], lines[2], lines[4]]


def test_unfinished_shards_are_not_opened(tmp_path):
    with pytest.raises(UserError, match="prepare"):
        open_pairs(tmp_path, "train")
    write(tmp_path, [5])
    with pytest.raises(UserError, match="no split 'test'"):
        open_pairs(tmp_path, "test")
