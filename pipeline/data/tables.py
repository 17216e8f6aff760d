"""Reads rows of CSV and TSV files. Every value stays its text, never a number or a missing value."""

import csv
import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from transloom.pipeline.data.formats import refuse_binary, refuse_lone_returns
from transloom.pipeline.data.lines import BOM, MAX_LINE_BYTES, open_text
from transloom.pipeline.errors import UserError
from transloom.pipeline.storage.files import is_url

TSV_ENDINGS = (".tsv", ".tsv.gz", ".tab", ".tab.gz")


def table_rows(file: str, is_tsv: bool, columns: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """Streams the rows below the header as (place, {column: text}); bytes that are not UTF-8 become surrogates.

    A CSV file has commas, and quotation marks around values with commas, line ends or quotation marks (RFC 4180). A TSV
    file has tabs, and a quotation mark is an ordinary character. Empty lines are skipped.

    Args:
        file: a path or a URL of fsspec, plain or .gz; a path also .xz and .zst.
        columns: the columns' names, in their order, for a file without a header. None given: line 1 is the header.
    Raises:
        UserError: the file is missing or has another format, or a row's number of fields is not the header's; names the
            file and the line.
    """
    with _open(file) as lines:
        origin = "the list of columns" if columns else "the header in line 1"
        rows = _tsv(file, lines) if is_tsv else _csv(file, lines)
        header = list(columns) if columns else next(rows, (0, []))[1]
        if doubles := {name for name in header if header.count(name) > 1}:
            raise UserError(f"{file} line 1: the header names {', '.join(map(repr, sorted(doubles)))} twice.")
        for number, fields in rows:
            if len(fields) != len(header):
                hint = "" if is_tsv else ' A field that holds a comma must stand in quotation marks: "a, b".'
                raise UserError(
                    f"{file} line {number}: {len(fields)} fields, but {origin} has {len(header)} "
                    f"({', '.join(map(repr, header))}). Mend the row.{hint}"
                )
            yield f"line {number}", dict(zip(header, fields, strict=True))


def _csv(file: str, lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, fields) of each row; the row begins in that line."""
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(lines, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{file} line {number}: not a row of CSV ({error}). A quotation mark at the beginning of a field "
                f'needs its counterpart at the end, and one inside is written twice ("").'
            ) from None
        if fields is None:
            return
        if fields:
            yield number, fields


def _tsv(file: str, lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, 1):
        if line := line.removesuffix("\n").removesuffix("\r"):
            if len(line) > 2 * MAX_LINE_BYTES:
                raise UserError(f"{file} line {number}: longer than {2 * MAX_LINE_BYTES:,} bytes, which is no row.")
            yield number, line.split("\t")


@contextmanager
def _open(file: str) -> Iterator[Iterator[str]]:
    import fsspec

    name = os.path.basename(file)
    if not is_url(file):
        if not os.path.exists(file):
            raise UserError(f"no such file: {file}")
        with open_text(Path(file)) as unpacked:
            head = unpacked.read(1 << 12)
        refuse_binary(file, head)
        refuse_lone_returns(file, head)
        with open_text(Path(file)) as unpacked:
            yield _decoded(unpacked)
        return
    try:
        raw: Any
        opened: Any
        with fsspec.open(file, "rb") as raw:
            head = raw.read(1 << 12)
        refuse_binary(file, head, is_compressed=name.endswith(".gz"))
        if not name.endswith(".gz"):
            refuse_lone_returns(file, head)
        with fsspec.open(file, "rb", compression="gzip" if name.endswith(".gz") else None) as opened:
            yield _decoded(opened)
    except FileNotFoundError:
        raise UserError(f"no such file: {file}") from None
    except PermissionError as error:
        raise UserError(f"{file}: not readable by this user. Change its permissions.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file}: not a whole gzip file ({error}). Fetch it again.") from error


def _decoded(file: IO[bytes]) -> Iterator[str]:
    """Yields lines with their line feeds."""
    at_start = True
    while line := file.readline(4 * MAX_LINE_BYTES):
        yield (line.removeprefix(BOM) if at_start else line).decode(errors="surrogateescape")
        at_start = False
