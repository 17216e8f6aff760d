"""Documents on disk, read back through memory maps, and their tokens as shards.

The texts of a split stand one after another in `split`.text, in UTF-8, and where each ends in `split`.ends.npy: no
character inside a document means anything.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data.clean import shortened
from pipeline.data.shards import shard_name, write_shard
from pipeline.data.text_tokenizer import TextTokenizer, load_text_tokenizer
from pipeline.disk import explain_full_disk
from pipeline.errors import UserError
from pipeline.files import atomic_write
from pipeline.progress import Progress, no_progress

COLUMN = "tokens"  # the side of the shards' files: `name`.tokens_tokens.npy and `name`.tokens_lengths.npy
ENCODED_BYTES = 1 << 20  # of text that is given to the tokenizer at a time


def write_documents(
    folder: Path, split: str, documents: Iterable[str], progress: Progress = no_progress
) -> dict[str, int]:
    """Writes a split's two files, one document in memory at a time.

    Returns:
        documents, and bytes: of all of them in UTF-8.
    """
    ends = array("q")
    size = 0
    with atomic_write(folder / f"{split}.text") as file:
        for text in documents:
            data = text.encode()
            file.write(data)
            size += len(data)
            ends.append(size)
            if len(ends) % 10_000 == 0:
                progress(f"clean {split}", len(ends), 0)
    with atomic_write(folder / f"{split}.ends.npy") as file:
        values = np.frombuffer(ends, np.int64) if ends else np.empty(0, np.int64)
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(values))
        file.write(values.tobytes())
    progress(f"clean {split}", len(ends), len(ends))
    return {"documents": len(ends), "bytes": size}


class Documents:
    """The documents of one split.

    Attributes:
        num_bytes: (documents,) int64, of each document in UTF-8.
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self._text = text
        self._ends = ends
        self.num_bytes = np.diff(ends, prepend=0)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        return self.data(index).decode()

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def data(self, index: int) -> bytes:
        """The document in UTF-8."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        end = int(self._ends[index])
        return self._text[end - int(self.num_bytes[index]) : end].tobytes()


def open_documents(folder: Path, split: str) -> Documents:
    """What `write_documents` wrote.

    Raises:
        UserError: the files are missing or damaged.
    """
    text_file, ends_file = folder / f"{split}.text", folder / f"{split}.ends.npy"
    try:
        size = text_file.stat().st_size
        ends = np.load(ends_file, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no documents of {split} ({error.filename}): run the prepare job first") from None
    except ValueError as error:
        raise UserError(f"{ends_file} is damaged: {error}. Remove {folder} and run the prepare job") from None
    is_right = ends.dtype == np.int64 and ends.ndim == 1
    if not is_right or (np.diff(ends, prepend=0) < 0).any() or (ends[-1] if len(ends) else 0) != size:
        raise UserError(f"{ends_file} does not belong to {text_file}. Remove {folder} and run the prepare job")
    # A file of no bytes can't be mapped.
    return Documents(np.memmap(text_file, np.uint8, "r") if size else np.empty(0, np.uint8), ends)


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
    """What a shard holds.

    Attributes:
        tokens: with an end of text for each document, which is predicted, too.
        bytes: of the text in UTF-8: bits per byte are a loss over these.
        unknown: tokens that stand for a character which the tokenizer lacks; each costs `unknown_bits` beside its loss.
        changed: documents that do not come back from their tokens as they were: bits per byte of these are not those
            of the text.
        longest: of a document, in tokens.
        changed_example: the beginning of the first of `changed`.
    """

    documents: int
    tokens: int
    bytes: int
    unknown: int
    changed: int
    longest: int
    changed_example: str = ""


def tokenize_documents(task: DocumentsTask) -> DocumentCounts:
    """Tokenises one shard, each document ending in the end of text, and writes it in the form of `write_shard`, side
    "tokens". Runs anywhere that sees the three folders."""
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
    return DocumentCounts(
        len(lengths), sum(lengths), size, counts["unknown"], counts["changed"], max(lengths), example
    )


def _batches(documents: Documents, first: int, end: int) -> Iterator[list[str]]:
    """The documents in lists of about ENCODED_BYTES."""
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


def tokenized(folder: Path, split: str, num_shards: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The (tokens, lengths) of a split's shards, in order; tokens memory-mapped."""
    names = [f"{shard_name(split, index)}.{COLUMN}" for index in range(num_shards)]
    tokens = [np.load(folder / f"{name}_tokens.npy", mmap_mode="r") for name in names]
    return tokens, [np.load(folder / f"{name}_lengths.npy") for name in names]


def bits_per_byte(total_loss: float, counts: DocumentCounts, tokenizer: TextTokenizer) -> float:
    """The code length of a text in bits, divided by its bytes in UTF-8: comparable between tokenizers.

    Args:
        total_loss: in nats, over all tokens and ends of text.
    """
    return (total_loss / float(np.log(2.0)) + counts.unknown * tokenizer.unknown_bits) / counts.bytes
