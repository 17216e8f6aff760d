"""The tokens of documents as shards: one column, "tokens", in the form of `pipeline.data.shards.write_shard`."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transloom.pipeline.data.clean import shortened
from transloom.pipeline.data.document_store import Documents, open_documents
from transloom.pipeline.data.shards import shard_name, write_shard
from transloom.pipeline.data.text_tokenizer import load_text_tokenizer
from transloom.pipeline.disk import explain_full_disk

COLUMN = "tokens"  # the files are `name`.tokens_tokens.npy and `name`.tokens_lengths.npy
ENCODED_BYTES = 1 << 20  # of text that the tokenizer gets at a time


@dataclass(frozen=True)
class DocumentsTask:
    """One shard's share of a split: the documents from `first` to before `end`."""

    documents_folder: str
    tokenizer_folder: str
    output_folder: str
    split: str
    index: int
    first: int
    end: int


def document_tasks(
    documents_folder: Path, tokenizer_folder: Path, output_folder: Path, split: str, bytes_per_shard: int
) -> Iterator[DocumentsTask]:
    """Cuts a split into shards of about `bytes_per_shard` bytes of text, each of at least one document.

    Raises:
        UserError: see `open_documents`.
    """
    folders = (str(documents_folder), str(tokenizer_folder), str(output_folder))
    ends = np.cumsum(open_documents(documents_folder, split).num_bytes)
    first, index = 0, 0
    while first < len(ends):
        limit = bytes_per_shard + (ends[first - 1] if first else 0)
        end = max(first + 1, int(np.searchsorted(ends, limit, side="right")))
        yield DocumentsTask(*folders, split, index, first, end)
        first, index = end, index + 1


@dataclass(frozen=True)
class DocumentCounts:
    """The counts of a shard.

    Attributes:
        text_tokens: tokens, with each document's end of text, which is predicted, too.
        bytes: of the text in UTF-8, the unit of bits per byte.
        unknown: tokens for characters that the tokenizer lacks; each costs `unknown_bits` beside its loss.
        changed: documents that differ after encoding and decoding: their bits per byte are not those of the text.
        longest: tokens of the longest document.
        changed_example: the beginning of the first changed document.
    """

    documents: int
    text_tokens: int
    bytes: int
    unknown: int
    changed: int
    longest: int
    changed_example: str = ""


def tokenize_documents(task: DocumentsTask) -> DocumentCounts:
    """Tokenises one shard, each document ending in the end of text, and writes it in the form of `write_shard`, side
    "tokens". Runs on any machine that sees the three folders."""
    tokenizer = load_text_tokenizer(Path(task.tokenizer_folder))
    documents = open_documents(Path(task.documents_folder), task.split)
    end_of_text = np.array([tokenizer.end_of_text], dtype=np.int32)
    columns: list[np.ndarray] = []
    counts: Counter[str] = Counter()
    example = ""
    for texts in _batches(documents, task.first, task.end):
        for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
            if tokenizer.unknown is not None:
                counts["unknown"] += int(np.count_nonzero(ids == tokenizer.unknown))
            if tokenizer.decode(ids) != text:
                counts["changed"] += 1
                example = example or shortened(text)
            columns.append(np.concatenate([ids, end_of_text]))
    lengths = [len(ids) for ids in columns]
    folder = Path(task.output_folder)
    with explain_full_disk(folder):
        write_shard(folder, shard_name(task.split, task.index), COLUMN, columns, tokenizer.vocab_size)
    size = int(documents.num_bytes[task.first : task.end].sum())
    return DocumentCounts(len(lengths), sum(lengths), size, counts["unknown"], counts["changed"], max(lengths), example)


def _batches(documents: Documents, first: int, end: int) -> Iterator[list[str]]:
    """Yields the documents in lists of about ENCODED_BYTES."""
    texts: list[str] = []
    size = 0
    for index in range(first, end):
        texts.append(documents[index])
        size += int(documents.num_bytes[index])
        if size >= ENCODED_BYTES:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts
