"""Cuts sources into portions, which processes read independently of each other; a pure function of the files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from transloom.pipeline.data.lines import BOM, MAX_LINE_BYTES, PACKED, line_cuts, open_text, read_lines, read_lines_at
from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.data.sources import Row, Source, dataset_rows, file_rows
from transloom.pipeline.errors import UserError
from transloom.pipeline.progress import MapTasks

PORTION_PAIRS = 50_000
PORTION_BYTES = 64 << 20  # of rows in memory
QUICK_BYTES = 16 << 20  # of a side of a portion that is read at once

Unreadable = Callable[[str, str], None]  # a reason and a message
UNTRANSLATED = "untranslated"  # the reason of a unit that is no pair, which is no fault of a translation memory


def refuse(reason: str, message: str) -> None:
    """The default handling of a pair that can't be read: stop with a UserError."""
    if reason != UNTRANSLATED:
        raise UserError(f"{message} Mend the corpus there.")


@dataclass(frozen=True)
class LinePortion:
    """Lines of two plain text files.

    Attributes:
        source: the number of the source in its split.
        label, first: row i has the place "label<first + i>", in messages about examples.
        num_bytes: how much is read, for the progress.
        files, offsets, ends: of either side, the file, and the bytes where the first line begins and the last ends.
        count: the largest number of lines.
    """

    source: int
    label: str
    first: int
    num_bytes: int
    files: tuple[Path, Path]
    offsets: tuple[int, int]
    ends: tuple[int, int]
    count: int


@dataclass(frozen=True)
class FilePortion:
    """A file of any other format; `source` to `num_bytes` as of `LinePortion`."""

    source: int
    label: str
    first: int
    num_bytes: int
    origin: Source
    file: Path


@dataclass(frozen=True)
class RowPortion:
    """Rows that were read already: those of compressed text and of data sets, which only one process can read; `source`
    to `num_bytes` as of `LinePortion`.

    Attributes:
        sides: the file of each side, or the column. is_text: whether these are files.
    """

    source: int
    label: str
    first: int
    num_bytes: int
    sides: tuple[str, str]
    is_text: bool
    rows: Sequence[Row]


Portion = LinePortion | FilePortion | RowPortion


def place_of(portion: Portion, number: int) -> str:
    """The place of a row, in messages about examples."""
    return f"{portion.label}{portion.first + number}"


def portion_rows(portion: Portion) -> Iterator[Row]:
    """Streams the rows of a portion."""
    match portion:
        case LinePortion():
            ends = zip(portion.files, portion.offsets, strict=True)
            sides = [read_lines_at(file, offset, portion.count) for file, offset in ends]
            for number, (source, target) in enumerate(zip(*sides, strict=True), portion.first):
                yield Row(f"{portion.label}{number}", source, target)
        case FilePortion():
            yield from file_rows(portion.origin, portion.file)
        case RowPortion():
            yield from portion.rows


def _side_place(portion: Portion, number: int, place: str, side: int) -> str:
    """The place of one side of a row."""
    match portion:
        case LinePortion():
            return f"{portion.files[side]} line {portion.first + number}"
        case RowPortion(is_text=True):
            return f"{portion.sides[side]} line {portion.first + number}"
        case RowPortion():
            return f"{place}, {portion.sides[side]}"
        case _:
            return f"{place}, {('source', 'target')[side]}"


def source_portions(source: Source, number: int) -> Iterator[Portion]:
    """The rows of a source, in their order.

    Args:
        number: of the source.
    Raises:
        UserError: a file can't be read.
    """
    for files in source.sides:
        label = "line " if source.short_places else f"{files[0].name} line "
        if any(file.suffix in PACKED for file in files):
            lines = zip_longest(read_lines(files[0]), read_lines(files[1]))
            rows = (Row(f"{label}{i}", *_both(pair, files, source.key)) for i, pair in enumerate(lines, 1))
            yield from row_portions(rows, number, label, (str(files[0]), str(files[1])), is_text=True)
            continue
        sizes = (files[0].stat().st_size, files[1].stat().st_size)
        if not all(sizes):
            continue
        cuts = [(0, 0), *zip(*(line_cuts(file, PORTION_PAIRS) for file in files), strict=True)]
        for i, (offsets, ends) in enumerate(zip(cuts, [*cuts[1:], sizes], strict=True)):
            yield LinePortion(
                source=number,
                label=label,
                first=1 + i * PORTION_PAIRS,
                num_bytes=sum(ends) - sum(offsets),
                files=files,
                offsets=offsets,
                ends=ends,
                count=PORTION_PAIRS,
            )
    for file in source.files:
        yield FilePortion(number, f"{file.name} pair ", 1, file.stat().st_size, source, file)
    if source.is_stream:
        columns = (str(source.config.source_column), str(source.config.target_column))
        yield from row_portions(dataset_rows(source), number, "row ", columns)


def _both(pair: tuple[Any, Any], files: tuple[Path, Path], key: str) -> tuple[bytes, bytes]:
    if None in pair:
        raise UserError(f"{key}: the two sides must have equally many lines, but {files[pair[0] is not None]} has more")
    return pair


def row_portions(
    rows: Iterable[Row], source: int, label: str, sides: tuple[str, str], is_text: bool = False
) -> Iterator[RowPortion]:
    """Portions of a stream of rows; the other arguments are fields of theirs."""
    rows, first = iter(rows), 1
    while True:
        portion: list[Row] = []
        size = 0
        for row in islice(rows, PORTION_PAIRS):
            portion.append(row)
            size += len(row.source) + len(row.target)
            if size >= PORTION_BYTES:
                break
        if not portion:
            return
        yield RowPortion(source, label, first, size, sides, is_text, portion)
        first += len(portion)


def portion_pairs(portion: Portion, unreadable: Unreadable) -> Iterator[tuple[int, str, SentencePair]]:
    """Streams (number, place, pair) of a portion's rows that are text, the numbers from 0.

    Args:
        unreadable: called with (reason, message) for a pair that is not text: invalid_utf8, nul, too_long (over
            MAX_LINE_BYTES); and for a unit that is no pair: untranslated. When it returns, the pair is left out.
    """
    if isinstance(portion, LinePortion) and (sides := _whole_text(portion)):
        label, first = portion.label, portion.first
        for number, pair in enumerate(map(SentencePair, *sides)):
            yield number, f"{label}{first + number}", pair
        return
    for number, (place, source, target, lacks) in enumerate(portion_rows(portion)):
        if lacks:
            unreadable(UNTRANSLATED, f"{place}: {lacks}.")
            continue
        try:
            is_short = len(source) <= MAX_LINE_BYTES and len(target) <= MAX_LINE_BYTES
            if is_short and b"\0" not in source and b"\0" not in target:
                yield number, place, SentencePair(source.decode(), target.decode())
                continue
        except UnicodeDecodeError:
            pass
        unreadable(*_fault(portion, number, place, (source, target)))


def _whole_text(portion: LinePortion) -> tuple[list[str], list[str]] | None:
    """The lines of both sides, decoded at once, which takes a tenth of the time; None where the text is large or a line
    is none, has a carriage return, or may be too long."""
    sides: list[list[str]] = []
    for file, start, end in zip(portion.files, portion.offsets, portion.ends, strict=True):
        if end - start > QUICK_BYTES:
            return None
        with open_text(file) as opened:
            opened.seek(start)
            data = opened.read(end - start)
        if b"\r" in data or b"\0" in data or data.startswith(BOM):
            return None
        try:
            lines = data.removesuffix(b"\n").decode().split("\n")
        except UnicodeDecodeError:
            return None
        if 4 * max(map(len, lines)) > MAX_LINE_BYTES:
            return None
        sides.append(lines)
    source, target = sides
    assert len(source) == len(target)
    return source, target


def _fault(portion: Portion, number: int, place: str, sides: tuple[bytes, bytes]) -> tuple[str, str]:
    """The reason and the message of the first side that is not text."""
    for side, text in enumerate(sides):
        where = _side_place(portion, number, place, side)
        if len(text) > MAX_LINE_BYTES:
            return "too_long", f"{where}: longer than {MAX_LINE_BYTES} bytes, which is no sentence."
        if b"\0" in text:
            return "nul", f"{where}: a NUL byte at byte {text.index(0) + 1} of the line: this is not text."
        try:
            text.decode()
        except UnicodeDecodeError as error:
            byte = text[error.start]
            message = f"{where}: byte {error.start + 1} of the line (0x{byte:02x}) is not valid UTF-8."
            return "invalid_utf8", message
    raise AssertionError("both sides are text")


def map_portions(function: Callable[[Any], Any], items: Iterable[Any], map_tasks: MapTasks) -> Iterator[Any]:
    """`map_tasks`, but `map` where there is only one item: another process would import for longer than it worked."""
    items = iter(items)
    few = list(islice(items, 2))
    yield from (map_tasks if len(few) > 1 else map)(function, chain(few, items))
