"""Streams documents from files of text, JSON lines and parquet; memory does not grow with the file."""

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import Any

from transloom.pipeline.data.clean import shortened
from transloom.pipeline.data.formats import refuse_binary
from transloom.pipeline.data.lines import BOM, PACKED, open_text, unpacked_name
from transloom.pipeline.data.wording import sentences
from transloom.pipeline.errors import UserError

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
HEAD_BYTES = 1 << 16
BLOCK_BYTES = 1 << 20
SENTENCE_ENDS = (b".", b"!", b"?", b'."', b'!"', b'?"')  # of a line that the next line does not go on with
ROWS_PER_BATCH = 64  # of a parquet file


class Unit(Enum):
    """The document in a text file: the file, a line, a block between blank lines, or a sentence of such a block, by
    rules for English."""

    file = "file"
    line = "line"
    paragraph = "paragraph"
    sentence = "sentence"


@dataclass(frozen=True)
class Fault:
    """The reason why a text that was read is no document."""

    reason: str
    message: str


Read = tuple[str, str | Fault]  # a place, and the document or its fault


def read_file(file: Path, unit: Unit, text_field: str, max_bytes: int) -> Iterator[Read]:
    """Streams (place, document) of a file, texts unchanged, with a `Fault` for each document that can't be read.

    Args:
        unit: the document in a text file.
        text_field: the field of a JSON object, or the column of a parquet file; a dotted path leads into nested ones.
        max_bytes: of a longer document only the beginning is ever in memory.
    Raises:
        UserError: the file is truncated, not readable, or lacks the column.
    """
    format_of_file = file_format(file)
    if format_of_file == "parquet":
        yield from _parquet(file, text_field)
    elif fault := _binary(file):
        yield str(file), fault
    elif format_of_file == "json":
        yield from _json_lines(file, text_field, max_bytes)
    elif unit is Unit.file:
        yield _whole_file(file, max_bytes)
    elif unit is Unit.line:
        yield from _line_documents(file, max_bytes)
    elif unit is Unit.sentence:
        for place, text in _paragraphs(file, max_bytes, SENTENCE_ENDS):
            yield from ((place, part) for part in ([text] if isinstance(text, Fault) else sentences(text)))
    else:
        yield from _paragraphs(file, max_bytes)


def file_format(file: Path) -> str:
    """The format by the file's suffix: "json", "parquet" or "text"."""
    suffix = Path(unpacked_name(file.name)).suffix.lower()
    return "json" if suffix in JSON_SUFFIXES else "parquet" if suffix == ".parquet" else "text"


def files_below(folder: Path, suffixes: tuple[str, ...], excluded: frozenset[str] = frozenset()) -> list[Path]:
    """The files below a folder that end in one of `suffixes`, also compressed, sorted by their paths.

    Hidden files and folders are left out, and folders of the names `excluded`. Links to folders are not followed.
    """
    paths = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in excluded]
        paths += [
            os.path.join(parent, name)
            for name in names
            if not name.startswith(".") and unpacked_name(name).endswith(suffixes)
        ]
    return [Path(path) for path in sorted(paths, key=lambda path: path.split(os.sep)) if os.path.isfile(path)]


def matching_files(pattern: str, key: str) -> list[Path]:
    """The files that match a pattern, sorted by name.

    Args:
        key: the setting of the pattern, for messages.
    Raises:
        UserError: there is none.
    """
    literal = [pattern] if os.path.isfile(pattern) else []  # a file's name may have brackets
    matches = literal or sorted(glob.glob(pattern, recursive=True))
    files = [Path(name) for name in matches if os.path.isfile(name)]
    if not files and os.path.isdir(pattern):
        raise UserError(f"{key}: {pattern} is a folder. Name files in it: {os.path.join(pattern, '*')}")
    if not files:
        packed = next((f" {pattern}{ending} is there." for ending in PACKED if os.path.isfile(pattern + ending)), "")
        raise UserError(f"{key}: no file matches {pattern}.{packed} Quote a pattern, so that no shell expands it.")
    return files


def _binary(file: Path) -> Fault | None:
    """The fault of a file that is not text, from its beginning; None for text."""
    with open_text(file) as opened:
        head = opened.read(HEAD_BYTES)
    try:
        refuse_binary(file, head)
    except UserError as error:
        before, phrase, _ = str(error).partition(", not text in UTF-8.")
        return Fault("binary", before + phrase)
    return None


def _whole_file(file: Path, max_bytes: int) -> Read:
    with open_text(file) as opened:
        data = opened.read(max_bytes + 1 + len(BOM)).removeprefix(BOM)
    if len(data) > max_bytes:
        hint = "corpus.unit=line or paragraph makes documents of its lines; corpus.max_bytes is the limit."
        return str(file), Fault("too_long", f"{file}: longer than {max_bytes:,} bytes. {hint}")
    return str(file), _decoded(file, 1, data)


def _lines(file: Path, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yields (number, line) without the line end; of a line longer than `max_bytes` only max_bytes + 1 bytes."""
    with open_text(file) as opened:
        number = 0
        while line := opened.readline(max_bytes + 2 + len(BOM)):
            number += 1
            if not line.endswith(b"\n") and len(line) > max_bytes:
                while (rest := opened.readline(BLOCK_BYTES)) and not rest.endswith(b"\n"):
                    pass
            line = line.removeprefix(BOM) if number == 1 else line
            yield number, line.removesuffix(b"\n").removesuffix(b"\r")[: max_bytes + 1]


def _line_documents(file: Path, max_bytes: int) -> Iterator[Read]:
    for number, line in _lines(file, max_bytes):
        place = f"{file} line {number}"
        yield place, _too_long(place, max_bytes) if len(line) > max_bytes else _decoded(file, number, line)


def _paragraphs(file: Path, max_bytes: int, ends: tuple[bytes, ...] = ()) -> Iterator[Read]:
    """
    Args:
        ends: a line that ends so ends a paragraph, too.
    """
    start, lines, size = 0, [], 0
    for number, line in chain(_lines(file, max_bytes), [(0, b"")]):
        if line.strip():
            start = start or number
            size += len(line) + 1
            if size <= max_bytes + 1:
                lines.append(line)
        if start and (not line.strip() or (ends and line.rstrip().endswith(ends))):
            place = f"{file} line {start}"
            is_long = size > max_bytes + 1
            yield place, _too_long(place, max_bytes) if is_long else _decoded(file, start, b"\n".join(lines))
            start, lines, size = 0, [], 0


def _json_lines(file: Path, text_field: str, max_bytes: int) -> Iterator[Read]:
    for number, line in _lines(file, max_bytes):
        place = f"{file} line {number}"
        if not line.strip():
            continue
        if len(line) > max_bytes:
            yield place, _too_long(place, max_bytes)
            continue
        text = _decoded(file, number, line)
        if isinstance(text, Fault):
            yield place, text
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            hint = " A file of JSON lines has a whole object in each line." if number == 1 else ""
            yield place, Fault("broken_json", f"{place}: is no JSON ({error}).{hint}")
            continue
        yield place, field_of(record, text_field, place)


def _parquet(file: Path, text_field: str) -> Iterator[Read]:
    for place, row in parquet_rows(file, [text_field], "corpus.text_field"):
        yield place, field_of(row, text_field, place)


def parquet_rows(file: Path, fields: Sequence[str], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Streams (place, row) of a parquet file, with the columns that the fields lie in.

    Args:
        fields: names of columns, or dotted paths into nested ones.
        key: the setting that names the fields, for messages.
    Raises:
        UserError: the file is truncated, or lacks a column.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as table:
            names = table.schema_arrow.names
            columns = [name if name in names else name.partition(".")[0] for name in fields]
            if lacking := [column for column in columns if column not in names]:
                raise UserError(f"{key}: {file} has no column {lacking[0]!r}, only {', '.join(names)}")
            number = 0
            for batch in table.iter_batches(ROWS_PER_BATCH, columns=list(dict.fromkeys(columns))):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file} row {number}", row
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: is not a whole parquet file ({error}). Fetch it again.") from error


def field_of(record: Any, name: str, place: str) -> str | Fault:
    """The text of a record's field, or the fault."""
    value = value_of(record, name, place, "corpus.text_field")
    if isinstance(value, Fault | str):
        return value
    return Fault("missing_field", f"{place}: {name!r} (corpus.text_field) holds {kind_of(value)}, not text.")


def value_of(record: Any, name: str, place: str, key: str) -> Any | Fault:
    """The value of a record's field, of any type, or the fault.

    Args:
        name: a dotted path leads into nested records.
        key: the setting that names the field, for messages.
    """
    value = record
    for part in [name] if isinstance(record, Mapping) and name in record else name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            held = f"has {', '.join(map(str, value))}" if isinstance(value, Mapping) else f"is {kind_of(value)}"
            return Fault("missing_field", f"{place}: no field {name!r} ({key}); it {shortened(held)}.")
        value = value[part]
    return value


def kind_of(value: Any) -> str:
    """The type of a value, for a message."""
    return "nothing" if value is None else f"a {type(value).__name__}"


def _too_long(place: str, max_bytes: int) -> Fault:
    return Fault("too_long", f"{place}: longer than {max_bytes:,} bytes (corpus.max_bytes).")


def _decoded(file: Path, first_line: int, data: bytes) -> str | Fault:
    """The text of some lines of a file, or the fault with its place."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        reason, byte, complaint = "invalid_utf8", error.start, f"0x{data[error.start]:02x} is not valid UTF-8"
    else:
        if "\0" not in text:
            return text
        reason, byte, complaint = "nul", data.index(0), "a NUL byte, so this is not text"
    line = first_line + data.count(b"\n", 0, byte)
    column = byte - data.rfind(b"\n", 0, byte)
    return Fault(reason, f"{file} line {line}: {complaint} (byte {column} of the line).")


def checked(place: str, text: str, max_bytes: int) -> str | Fault:
    """The document, or the fault if there is nothing to learn from it. Every document has two tokens or more, counting
    the end of text."""
    if not text.strip():
        return Fault("empty", f"{place}: is empty.")
    if "\0" in text:
        return Fault("nul", f"{place}: has a NUL character, so this is not text.")
    try:
        is_long = len(text) > max_bytes or len(text.encode()) > max_bytes
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
        return Fault("invalid_utf8", f"{place}: character {error.start + 1} of the text is half of a surrogate pair.")
    return _too_long(place, max_bytes) if is_long else text
