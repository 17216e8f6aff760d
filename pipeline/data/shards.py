"""Tokenised examples on disk, read back through memory maps.

A shard has two .npy files for each column: the tokens of all sentences one after another, and each sentence's length.
A pair has the columns source and target. Sentences end with </s>, which lengths include.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from transloom.pipeline.data.tokenizer import Tokenizer
from transloom.pipeline.disk import explain_full_disk
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import MANIFEST, atomic_write, read_json, write_json

SIDES = ("source", "target")


def shard_name(split: str, index: int) -> str:
    return f"{split}-{index:05d}"


def write_shard(folder: Path, name: str, side: str, sentences: list[np.ndarray], vocab_size: int) -> None:
    """Writes one side of a shard: `name`.`side`_tokens.npy and `name`.`side`_lengths.npy.

    Args:
        sentences: token ids of each sentence, </s> included.
        vocab_size: tokens are uint16 where they fit, else int32.
    """
    token_type = np.uint16 if vocab_size <= 1 << 16 else np.int32
    tokens = np.concatenate(sentences).astype(token_type) if sentences else np.empty(0, token_type)
    write_array(folder / f"{name}.{side}_tokens.npy", tokens)
    write_array(folder / f"{name}.{side}_lengths.npy", np.array([len(ids) for ids in sentences], dtype=np.int32))


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes an .npy file, whole or not at all."""
    with atomic_write(path) as file:
        # Not np.save: on a full disk its tofile() raises an OSError that does not name the cause.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.tobytes())


@dataclass(frozen=True)
class ShardTask:
    """One shard's share of the corpus: `pairs` lines from byte offsets in `split`.source and `split`.target."""

    corpus_folder: str
    tokenizer_folder: str
    output_folder: str
    split: str
    index: int
    source_offset: int
    target_offset: int
    pairs: int


def shard_tasks(
    corpus_folder: Path, tokenizer_folder: Path, output_folder: Path, split: str, pairs_per_shard: int
) -> Iterator[ShardTask]:
    """Cuts a split of a corpus folder into shards of `pairs_per_shard` pairs; the last one has the rest."""
    folders = (str(corpus_folder), str(tokenizer_folder), str(output_folder))
    source_offset, target_offset, index = 0, 0, 0
    with (
        open(corpus_folder / f"{split}.source", "rb") as source,
        open(corpus_folder / f"{split}.target", "rb") as target,
    ):
        while source_lengths := [len(line) for line in islice(source, pairs_per_shard)]:
            target_lengths = [len(line) for line in islice(target, pairs_per_shard)]
            assert len(source_lengths) == len(target_lengths), f"{corpus_folder}: sides of {split} differ"
            yield ShardTask(*folders, split, index, source_offset, target_offset, len(source_lengths))
            source_offset += sum(source_lengths)
            target_offset += sum(target_lengths)
            index += 1


@dataclass(frozen=True)
class ShardCounts:
    """The counts of a shard; tokens include </s>."""

    pairs: int
    source_tokens: int
    target_tokens: int
    longest_source: int
    longest_target: int


def tokenize_shard(task: ShardTask) -> ShardCounts:
    """Tokenises and writes one shard; returns its counts. Runs on any machine that sees the three folders."""
    tokenizer = Tokenizer.load(Path(task.tokenizer_folder))
    total, longest = {}, {}
    for side, offset in zip(SIDES, (task.source_offset, task.target_offset), strict=True):
        sentences: list[np.ndarray] = []
        with open(Path(task.corpus_folder, f"{task.split}.{side}"), "rb") as file:
            file.seek(offset)
            lines = islice(file, task.pairs)
            while texts := [line.decode() for line in islice(lines, 1000)]:
                sentences += tokenizer.encode_arrays(texts)
        lengths = [len(ids) for ids in sentences]
        total[side], longest[side] = sum(lengths), max(lengths)
        folder = Path(task.output_folder)
        with explain_full_disk(folder):
            write_shard(folder, shard_name(task.split, task.index), side, sentences, tokenizer.vocab_size)
    counts = ShardCounts(task.pairs, total["source"], total["target"], longest["source"], longest["target"])
    with explain_full_disk(folder):
        write_json(_marker(task), asdict(counts))
    return counts


def _marker(task: ShardTask) -> Path:
    """The file that says that a shard is whole: written last."""
    return Path(task.output_folder, f"{shard_name(task.split, task.index)}.json")


def done_shard(task: ShardTask) -> ShardCounts | None:
    """The counts of a shard that was written before; None where it was not."""
    try:
        return ShardCounts(**read_json(_marker(task)))
    except FileNotFoundError:
        return None


class Columns:
    """The examples of one split, over all of its shards, in the corpus's order: named columns of token ids.

    Attributes:
        columns: the columns' names.
        lengths: (examples, columns) int32, tokens in each column, </s> included.
    """

    def __init__(self, folder: Path, split: str, num_shards: int, columns: tuple[str, ...]) -> None:
        names = [shard_name(split, index) for index in range(num_shards)]
        self.columns = columns
        self._columns = {column: _Column(folder, names, column) for column in columns}
        self.lengths = np.stack([column.lengths for column in self._columns.values()], axis=1)

    def __len__(self) -> int:
        return len(self.lengths)

    def lengths_of(self, column: str) -> np.ndarray:
        """(examples,) int32."""
        return self._columns[column].lengths

    def get(self, column: str, row: int) -> np.ndarray:
        """(length,) token ids, a view of the memory map."""
        return self._columns[column][row]


class _Column:
    """One column of a split. The lengths give the shard and the offset of example i."""

    def __init__(self, folder: Path, names: list[str], column: str) -> None:
        self._tokens = [np.load(folder / f"{name}.{column}_tokens.npy", mmap_mode="r") for name in names]
        lengths = [np.load(folder / f"{name}.{column}_lengths.npy") for name in names]
        self.lengths = np.concatenate(lengths) if lengths else np.empty(0, np.int32)
        self._shard_of = np.repeat(np.arange(len(names), dtype=np.int32), [len(part) for part in lengths])
        # int64, since the number of tokens in a shard is not limited.
        starts = [np.cumsum(part, dtype=np.int64) - part for part in lengths]
        self._starts = np.concatenate(starts) if starts else np.empty(0, np.int64)

    def __getitem__(self, index: int) -> np.ndarray:
        start = self._starts[index]
        return self._tokens[self._shard_of[index]][start : start + self.lengths[index]]


def open_shards(folder: Path, split: str, columns: tuple[str, ...]) -> Columns:
    """The examples of "train", "validation" or "test" in a finished shards folder.

    Raises:
        UserError: the folder is not finished, or lacks the split.
    """
    try:
        splits = read_json(folder / MANIFEST)["counts"]["splits"]
    except FileNotFoundError:
        raise UserError(f"{folder} holds no finished shards: run the prepare job first") from None
    if split not in splits:
        raise UserError(f"{folder} has no split {split!r}, only {', '.join(splits)}")
    return Columns(folder, split, splits[split]["shards"], columns)
