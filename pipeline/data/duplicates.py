"""Finds equal pairs of a whole corpus by hashes on the disk: memory holds PARTITION_PAIRS of them at a time, however
many pairs there are."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from transloom.pipeline.data.shards import write_array
from transloom.pipeline.progress import MapTasks, Progress

PARTITION_PAIRS = 2_000_000  # 48 bytes of memory each


def write_digests(path: Path, texts: Sequence[bytes], numbers: Sequence[int]) -> None:
    """Writes (texts, 3) uint64, sorted by the hashes: both halves of a text's hash of 128 bits; and its number times
    2^32, plus its place among the texts.

    Args:
        texts: equal ones are duplicates. numbers: one of each text, for the caller.
    """
    hashes = b"".join(hashlib.blake2b(text, digest_size=16).digest() for text in texts)
    halves = np.frombuffer(hashes, "<u8").reshape(-1, 2)
    places = (np.array(numbers, np.uint64) << np.uint64(32)) + np.arange(len(texts), dtype=np.uint64)
    table = np.column_stack([halves, places]).astype(np.uint64)
    write_array(path, table[np.argsort(table[:, 0], kind="stable")])


@dataclass(frozen=True)
class _Partition:
    """The hashes whose first half is from `low` to `high`."""

    files: tuple[Path, ...]
    low: int
    high: int


def find_duplicates(
    files: Sequence[Path], sizes: Sequence[int], map_tasks: MapTasks, progress: Progress
) -> list[np.ndarray]:
    """Of each file of `write_digests`, (texts,) whether an equal text has an earlier place in it or stands in an
    earlier file. The result does not depend on the partitions.

    Args:
        sizes: the number of texts in each file.
    """
    if not files:
        return []
    is_duplicate = [np.zeros(size, bool) for size in sizes]
    count = max(1, -(-sum(sizes) // PARTITION_PAIRS))
    bounds = [i * (1 << 64) // count for i in range(count + 1)]
    tasks = [_Partition(tuple(files), low, high - 1) for low, high in pairwise(bounds)]
    for done, (of_file, places) in enumerate((map_tasks if count > 1 else map)(_duplicates_of, tasks), 1):
        starts = np.searchsorted(of_file, np.arange(len(files) + 1))
        for i in np.unique(of_file):
            is_duplicate[i][places[starts[i] : starts[i + 1]]] = True
        progress("find duplicates", done, count)
    return is_duplicate


def _duplicates_of(task: _Partition) -> tuple[np.ndarray, np.ndarray]:
    """The file and the place of each duplicate of a partition, sorted by the file."""
    parts, of_file = [], []
    for number, file in enumerate(task.files):
        table = np.load(file, mmap_mode="r")
        start, end = np.searchsorted(table[:, 0], np.uint64(task.low)), len(table)
        end = int(np.searchsorted(table[:, 0], np.uint64(task.high), side="right"))
        parts.append(np.array(table[start:end]))
        of_file.append(np.full(end - int(start), number, np.int32))
    table, numbers = np.concatenate(parts), np.concatenate(of_file)
    places = (table[:, 2] & np.uint64(0xFFFFFFFF)).astype(np.int64)
    order = np.lexsort((places, numbers, table[:, 1], table[:, 0]))
    hashes = table[order, :2]
    is_repeated = np.zeros(len(order), bool)
    is_repeated[1:] = (hashes[1:] == hashes[:-1]).all(axis=1)
    repeated = order[is_repeated]
    repeated = repeated[np.lexsort((places[repeated], numbers[repeated]))]
    return numbers[repeated], places[repeated]
