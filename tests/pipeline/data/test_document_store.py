import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transloom.pipeline.data.document_shards import document_tasks, tokenize_documents
from transloom.pipeline.data.document_store import open_documents, write_documents
from transloom.pipeline.data.text_tokenizer import (
    TextTokenizerConfig,
    TextTokenizerKind,
    load_text_tokenizer,
    train_text_tokenizer,
)
from transloom.pipeline.errors import UserError

TEXTS = ["one\ntwo\r\n", "\u2028", "ä" * 50, "\x00 \U0001f600", "last", "", "x"]
KINDS = [TextTokenizerConfig(vocab_size=270), TextTokenizerConfig(TextTokenizerKind.characters)]


@given(st.lists(st.text(max_size=20), max_size=8))
@settings(deadline=None)
def test_any_documents_come_back(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("documents")
    counts = write_documents(folder, "train", iter(texts))
    documents = open_documents(folder, "train")
    assert list(documents) == texts
    assert documents.num_bytes.tolist() == [len(text.encode()) for text in texts]
    assert counts == {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)}
    assert len(documents) == len(texts)
    with pytest.raises(IndexError):
        documents[len(texts)]


def test_what_is_missing_or_damaged_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"train\.text"):
        open_documents(tmp_path, "train")
    write_documents(tmp_path, "train", TEXTS)
    ends = np.load(tmp_path / "train.ends.npy")
    for wrong in (ends[:-2], ends[::-1], ends.astype(np.float64), ends[None], np.array(["a"], dtype=object)):
        np.save(tmp_path / "train.ends.npy", wrong)
        with pytest.raises(UserError, match=r"train\.ends\.npy"):
            open_documents(tmp_path, "train")
    (tmp_path / "train.ends.npy").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"train\.ends\.npy"):
        open_documents(tmp_path, "train")


@pytest.mark.parametrize("config", KINDS)
@pytest.mark.parametrize("bytes_per_shard", [1, 30, 10_000])
def test_shards_hold_every_document_with_its_end_of_text(tmp_path, config, bytes_per_shard):
    write_documents(tmp_path, "train", TEXTS)
    train_text_tokenizer(open_documents(tmp_path, "train"), config, tmp_path)
    tasks = list(document_tasks(tmp_path, tmp_path, tmp_path, "train", bytes_per_shard))
    assert [task.index for task in tasks] == list(range(len(tasks)))
    if bytes_per_shard == 10_000:
        assert len(tasks) == 1
    counts = list(map(tokenize_documents, tasks))
    tokenizer = load_text_tokenizer(tmp_path)
    texts = []
    for task, count in zip(tasks, counts, strict=True):
        tokens = np.load(tmp_path / f"train-{task.index:05d}.tokens_tokens.npy")
        lengths = np.load(tmp_path / f"train-{task.index:05d}.tokens_lengths.npy")
        assert (count.documents, count.text_tokens, count.longest) == (len(lengths), len(tokens), max(lengths))
        for ids in np.split(tokens, np.cumsum(lengths)[:-1]):
            assert ids[-1] == tokenizer.end_of_text
            texts.append(tokenizer.decode(ids))
    assert texts == TEXTS
    assert sum(count.bytes for count in counts) == sum(len(text.encode()) for text in TEXTS)
    assert sum(count.unknown + count.changed for count in counts) == 0


def test_unknown_characters_of_validation_are_counted_with_an_example(tmp_path):
    write_documents(tmp_path, "train", ["abc"])
    write_documents(tmp_path, "validation", ["cab", "b\nxyz", "zz"])
    train_text_tokenizer(open_documents(tmp_path, "train"), KINDS[1], tmp_path)
    (task,) = document_tasks(tmp_path, tmp_path, tmp_path, "validation", 1000)
    counts = tokenize_documents(task)
    assert (counts.text_tokens, counts.bytes, counts.unknown, counts.changed) == (13, 10, 6, 2)
    assert counts.changed_example == "b xyz"


def test_a_split_without_documents_has_no_shards(tmp_path):
    write_documents(tmp_path, "test", [])
    assert list(document_tasks(tmp_path, tmp_path, tmp_path, "test", 100)) == []
