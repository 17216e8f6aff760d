"""Cleans the portions of a corpus in tasks, and puts what they keep together.

The result, byte for byte, does not depend on the number of workers. Each task writes files of its own, so that a build
that was ended goes on from them."""

import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from transloom.pipeline.data.clean import CleanConfig, CleanReport, Evaluation, Invalid, clean_pairs, example
from transloom.pipeline.data.duplicates import find_duplicates, write_digests
from transloom.pipeline.data.held_out import HeldOut
from transloom.pipeline.data.overlap import bare_words
from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.data.portions import UNTRANSLATED, Portion, map_portions, portion_pairs
from transloom.pipeline.data.words import count_collapsed_words
from transloom.pipeline.disk import explain_full_disk
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import atomic_write, read_json, write_json
from transloom.pipeline.progress import MapTasks, Progress

Counts = dict[str, Any]


@dataclass(frozen=True)
class Rules:
    """What all portions of a corpus are cleaned by.

    Attributes:
        folder: has the files of validation and test.
        held_out_splits: those that were held out of train.
        languages: of each source, those of its two sides.
        tags: of each source, the tag that begins its source sentences; empty: none.
    """

    clean: CleanConfig
    languages: tuple[tuple[str, str], ...]
    folder: Path
    held_out_splits: tuple[str, ...]
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class CleanTask:
    """A portion to clean.

    Attributes:
        files: the beginning of the names of the files to write.
        held_out: numbers of rows that are held out for validation or test.
    """

    portion: Portion
    files: Path
    held_out: frozenset[int]
    rules: Rules


@dataclass
class Cleaned:
    """A portion that was cleaned: its files, and the counts of its pairs."""

    files: Path
    source: int
    label: str
    first: int
    num_bytes: int
    report: CleanReport


def _path(files: Path, ending: str) -> Path:
    return files.with_name(f"{files.name}.{ending}")


def invalid_line(invalid: Invalid, reason: str, message: str) -> None:
    """What happens to a line that is no text or no pair, but for its count: nothing, or a UserError."""
    if reason not in ("too_long", UNTRANSLATED) and invalid is Invalid.error:
        raise UserError(f"{message} Mend it, or set clean.invalid=drop to leave such pairs out of train.")


@lru_cache(maxsize=1)
def _evaluation(rules: Rules) -> Evaluation:
    """The sentences of validation and test; a process reads them once."""
    groups: dict[bool, list[SentencePair]] = {False: [], True: []}
    for split in ("validation", "test"):
        sides = [(rules.folder / f"{split}.{side}").read_bytes().split(b"\n")[:-1] for side in SentencePair._fields]
        pairs = [SentencePair(source.decode(), target.decode()) for source, target in zip(*sides, strict=True)]
        groups[split in rules.held_out_splits] += [_without_tag(pair, rules) for pair in pairs]
    return Evaluation(rules.clean, groups[False], groups[True])


def _without_tag(pair: SentencePair, rules: Rules) -> SentencePair:
    return SentencePair(pair.source.partition(" ")[2], pair.target) if rules.tags else pair


def clean_portion(task: CleanTask) -> Cleaned:
    """Cleans a portion and writes its pairs, and the digests that duplicates are found by. Runs on any machine that
    sees the folders. Does nothing where that was done before."""
    if cleaned := _done_before(task):
        return cleaned
    portion, rules = task.portion, task.rules
    report = CleanReport()

    def unreadable(reason: str, message: str) -> None:
        invalid_line(rules.clean.invalid, reason, message)
        report.drop(reason, message)

    rows = portion_pairs(portion, unreadable)
    kept = clean_pairs(rows, rules.clean, report, _evaluation(rules), task.held_out, rules.languages[portion.source])
    form = _form(rules.clean)
    digests: list[bytes] = []
    numbers: list[int] = []
    with (
        explain_full_disk(task.files.parent),
        atomic_write(_path(task.files, "source")) as source,
        atomic_write(_path(task.files, "target")) as target,
    ):
        for number, pair in kept:
            source.write(pair.source.encode() + b"\n")
            target.write(pair.target.encode() + b"\n")
            if form:
                digests.append(form(pair))
                numbers.append(number)
    with explain_full_disk(task.files.parent):
        if form:
            write_digests(_path(task.files, "digests.npy"), digests, numbers)
        about = {"source": portion.source, "label": portion.label, "first": portion.first}
        cleaned = Cleaned(task.files, **about, num_bytes=portion.num_bytes, report=report)
        write_json(_path(task.files, "json"), {**about, "num_bytes": portion.num_bytes, "report": vars(report)})
    return cleaned


def _done_before(task: CleanTask) -> Cleaned | None:
    try:
        about = read_json(_path(task.files, "json"))
    except FileNotFoundError:
        return None
    report = CleanReport(**about.pop("report"))
    report.dropped, report.changed = Counter(report.dropped), Counter(report.changed)
    return Cleaned(task.files, report=report, **about)


def _form(clean: CleanConfig) -> Callable[[SentencePair], bytes] | None:
    """A pair to the bytes that are equal for duplicates; None where these stay."""
    if clean.drop_near_duplicates:
        return lambda pair: "\n".join(map(bare_words, pair)).encode()
    return (lambda pair: "\n".join(pair).encode()) if clean.drop_duplicates else None


def clean_split(
    portions: Iterator[Portion],
    split: str,
    folder: Path,
    work: Path,
    rules: Rules,
    held_out: HeldOut,
    map_tasks: MapTasks,
    progress: Progress,
    total: int,
    num_bytes: int,
) -> tuple[Counts, list[CleanReport], CleanReport]:
    """Cleans a split and writes its two files.

    Args:
        folder: of the two files. work: of the portions' files.
        total: number of rows, 0 if unknown. num_bytes: of all portions, 0 if unknown.
    Returns:
        the split's counts; the report of each source; the report of all.
    Raises:
        UserError: a line is no text, or a file can't be read.
    """
    done: dict[int, Cleaned] = {}
    waiting: deque[int] = deque()

    def tasks() -> Iterator[CleanTask]:
        for number, portion in enumerate(portions):
            rows = held_out.rows.get(number, frozenset())
            task = CleanTask(portion, work / f"{split}-{number:06d}", rows, rules)
            if before := _done_before(task):
                done[number] = before
            else:
                waiting.append(number)
                yield task

    read = read_bytes = dropped = 0
    for cleaned in map_portions(clean_portion, tasks(), map_tasks):
        done[waiting.popleft()] = cleaned
        read += cleaned.report.read
        read_bytes += cleaned.num_bytes
        dropped += cleaned.report.dropped.total()
        in_all = total or (round(read * num_bytes / read_bytes) if num_bytes and read_bytes else 0)
        if read != in_all:
            progress(f"clean {split}", read, in_all, f"{read_bytes / 1e6:,.0f} MB read, {dropped:,} left out")
    in_order = [done[number] for number in sorted(done)]
    duplicates = _duplicates(in_order, rules.clean, map_tasks, progress)
    for number, is_dropped in enumerate(duplicates or ()):
        if is_dropped.any():
            _drop(in_order[number], is_dropped, rules.clean)
    _put_together(in_order, split, folder, duplicates, rules.tags)
    reports: dict[int, CleanReport] = {}
    for cleaned in in_order:
        reports.setdefault(cleaned.source, CleanReport()).add(cleaned.report)
    whole = CleanReport()
    for place in sorted(reports):
        whole.add(reports[place])
    progress(f"clean {split}", whole.read, whole.read)
    counts = {"pairs": whole.kept, "source_words": whole.source_words, "target_words": whole.target_words}
    num_sources = max(reports, default=-1) + 1
    return counts, [reports.get(place, CleanReport()) for place in range(num_sources)], whole


def _duplicates(
    in_order: list[Cleaned], clean: CleanConfig, map_tasks: MapTasks, progress: Progress
) -> list[np.ndarray] | None:
    """Of each portion (kept pairs,) whether an equal pair comes before; None where duplicates stay."""
    if _form(clean) is None:
        return None
    files = [_path(cleaned.files, "digests.npy") for cleaned in in_order]
    return find_duplicates(files, [cleaned.report.kept for cleaned in in_order], map_tasks, progress)


def _drop(cleaned: Cleaned, is_dropped: np.ndarray, clean: CleanConfig) -> None:
    """Takes the duplicates out of a portion's counts."""
    rule = "near_duplicate" if clean.drop_near_duplicates else "duplicate"
    report = cleaned.report
    numbers = np.load(_path(cleaned.files, "digests.npy"), mmap_mode="r")[:, 2]
    places = np.empty(len(numbers), np.int64)  # of kept pairs: the number of the row
    places[numbers & np.uint64(0xFFFFFFFF)] = numbers >> np.uint64(32)
    with ExitStack() as files:
        sides = [files.enter_context(open(_path(cleaned.files, side), "rb")) for side in SentencePair._fields]
        for i, lines in enumerate(zip(*sides, strict=True)):
            if not is_dropped[i]:
                continue
            pair = SentencePair(*(line[:-1].decode() for line in lines))
            report.kept -= 1
            report.source_words -= count_collapsed_words(pair.source)
            report.target_words -= count_collapsed_words(pair.target)
            report.equal -= pair.source == pair.target
            report.drop(rule, example(f"{cleaned.label}{cleaned.first + int(places[i])}", "seen before", pair))


def _put_together(
    in_order: list[Cleaned], split: str, folder: Path, duplicates: list[np.ndarray] | None, tags: tuple[str, ...]
) -> None:
    """Makes the two files of a split out of those of its portions, which go: so the disk needs no room for both."""
    if len(in_order) == 1 and not tags and not (duplicates and duplicates[0].any()):
        _path(in_order[0].files, "json").unlink()
        for side in SentencePair._fields:
            _path(in_order[0].files, side).rename(folder / f"{split}.{side}")
        return
    with (
        atomic_write(folder / f"{split}.source") as source,
        atomic_write(folder / f"{split}.target") as target,
    ):
        for number, cleaned in enumerate(in_order):
            is_dropped = duplicates[number] if duplicates else None
            _path(cleaned.files, "json").unlink()  # first: a portion that is not whole was never cleaned
            tag = f"{tags[cleaned.source]} ".encode() if tags else b""
            _append(source, _path(cleaned.files, "source"), is_dropped, tag)
            _append(target, _path(cleaned.files, "target"), is_dropped)


def _append(whole: BinaryIO, part: Path, is_dropped: np.ndarray | None, tag: bytes = b"") -> None:
    """Appends the lines of a part that stay, and removes the part."""
    with open(part, "rb") as lines:
        if not tag and (is_dropped is None or not is_dropped.any()):
            shutil.copyfileobj(lines, whole, 1 << 20)
        else:
            whole.writelines(tag + line for i, line in enumerate(lines) if is_dropped is None or not is_dropped[i])
    part.unlink()
