"""Reads records, which are named texts, from JSON lines, tables (TSV, CSV), parquet files, or plain files side by side.
Records are streamed: memory holds one record at a time."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from transloom.pipeline.data.document_files import Fault, kind_of, matching_files, parquet_rows, value_of
from transloom.pipeline.data.json_lines import is_json_lines, read_json_lines, read_text_lines
from transloom.pipeline.data.lines import count_lines, existing_file, unpacked_name
from transloom.pipeline.data.tables import table_rows
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import absolute_path, hash_of, sha256_file
from transloom.pipeline.progress import Progress, no_progress
from transloom.pipeline.storage.files import GLOB, fetch_file, is_url

ENDINGS = ".jsonl, .ndjson, .json, .tsv, .tab, .csv or .parquet"


class Record(NamedTuple):
    """One record.

    Attributes:
        place: file and line, for messages.
        texts: the text of each field.
        lists: the texts of each field that may have several.
    """

    place: str
    texts: dict[str, str]
    lists: dict[str, list[str]]


@dataclass(frozen=True)
class RecordSource:
    """The source of a split of records.

    Attributes:
        files: a pattern of files or a list of these: JSON lines (.jsonl, .ndjson, .json), tables with a header (.tsv,
            .tab, .csv) or .parquet, by their names; all but parquet may be compressed (.gz, .xz, .zst). Or, by the
            field's name, a file of plain text for each field, whose lines belong together.

    Raises:
        ValueError: `files` is something else.
    """

    files: Any = None

    def __post_init__(self) -> None:
        is_known = self.files is None or isinstance(self.files, str | list | tuple | Mapping)
        texts = self.patterns if is_known else (None,)
        if isinstance(self.files, Mapping):
            texts += tuple(self.files)
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError(
                f"files: must be a pattern of files, a list of these, or a file for each field, not {self.files!r}"
            )

    @property
    def patterns(self) -> tuple[Any, ...]:
        """The patterns in their order, or the file of each field."""
        if self.files is None:
            return ()
        if isinstance(self.files, Mapping):
            return tuple(self.files.values())
        return (self.files,) if isinstance(self.files, str) else tuple(self.files)

    def with_patterns(self, patterns: Sequence[str]) -> "RecordSource":
        """The source with other patterns, as many as before."""
        if isinstance(self.files, Mapping):
            return replace(self, files=dict(zip(self.files, patterns, strict=True)))
        return replace(self, files=list(patterns)) if patterns else self

    def with_absolute_paths(self) -> "RecordSource":
        """The source with paths made absolute (from the working directory), and ~ expanded."""
        return self.with_patterns([absolute_path(pattern) for pattern in self.patterns])


def read_records(
    source: RecordSource, fields: Sequence[str], key: str, columns: Sequence[str] = (), lists: Sequence[str] = ()
) -> Iterator[Record]:
    """Streams the records in a fixed order: pattern by pattern, files sorted by their names, lines from the top.

    A whole number becomes its digits, as of a label. A dotted name leads into nested records.

    Args:
        fields: the names of the fields to read, each a text.
        key: the split's setting, such as "corpus.train", for messages.
        columns: the names of a table's columns, in their order, for tables without a header.
        lists: the names of further fields, each a text or a list of at least one text.
    Raises:
        UserError: a file is missing, damaged or of an unknown format; a field is missing or no text; bytes are not
            UTF-8; or plain files have unequal numbers of lines. The message names the file and line.
    """
    if isinstance(source.files, Mapping):
        yield from _side_by_side(source.files, (*fields, *lists), key, lists)
        return
    for file in record_files(source, key):
        for place, row in _rows(file, (*fields, *lists), key, columns):
            texts = {name: text_of(row, name, place, key) for name in fields}
            yield Record(place, texts, {name: _texts(row, name, place, key) for name in lists})


def record_files(source: RecordSource, key: str) -> list[Path]:
    """The files of a source, in reading order.

    Raises:
        UserError: a pattern matches no file.
    """
    if isinstance(source.files, Mapping):
        return [_local(file, f"{key}.files.{field}") for field, file in source.files.items()]
    files: dict[Path, None] = {}
    for pattern in source.patterns:
        if is_url(pattern):
            raise UserError(f"{key}.files: {pattern} is behind a URL and was not fetched")
        if os.path.isdir(pattern):
            raise UserError(f"{key}.files: {pattern} is a folder. Name its files, as in '{pattern}/*.jsonl'")
        files |= dict.fromkeys(matching_files(pattern, f"{key}.files"))
    return list(files)


def records_fingerprint(source: RecordSource, key: str) -> str:
    """A hash of all files of a source, independent of folder names.

    Raises:
        UserError: a file is missing.
    """
    fields = list(source.files) if isinstance(source.files, Mapping) else None
    return hash_of([fields, [("".join(file.suffixes[-2:]), sha256_file(file)) for file in record_files(source, key)]])


def with_local_records(source: RecordSource, folder: Path, key: str, progress: Progress = no_progress) -> RecordSource:
    """The source with each URL replaced by the path of a copy below `folder`, which is fetched if missing or if the
    file has changed.

    Raises:
        UserError: a file can't be reached, or a URL is a pattern; names the setting.
    """
    for pattern in filter(is_url, source.patterns):
        if GLOB & set(pattern.partition("?")[0]):
            raise UserError(f"{key}.files: {pattern} is a pattern, and behind a URL each file must be named.")
    if not any(map(is_url, source.patterns)):
        return source
    return source.with_patterns(
        [str(fetch_file(name, folder, f"{key}.files", progress)) if is_url(name) else name for name in source.patterns]
    )


def _rows(file: Path, names: Sequence[str], key: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, row) of a file; a row is not checked."""
    ending = Path(unpacked_name(file.name)).suffix.lower()
    if is_json_lines(file):
        yield from read_json_lines(file)
    elif ending in (".tsv", ".tab", ".csv"):
        for place, row in table_rows(str(file), ending != ".csv", columns):
            yield f"{file} {place}", row
    elif ending == ".parquet":
        yield from parquet_rows(file, names, key)
    else:
        raise UserError(
            f"{key}.files: {file} ends in {ending or 'nothing'}, not in {ENDINGS}. Plain files are named by their "
            f"fields, as in {key}.files={{text: a.txt, label: b.txt}}"
        )


def _side_by_side(files: Mapping[str, str], names: Sequence[str], key: str, lists: Sequence[str]) -> Iterator[Record]:
    if lacking := [name for name in names if name not in files]:
        raise UserError(f"{key}.files: names no file of the field {lacking[0]!r}, only of {', '.join(files)}")
    paths = [_local(files[name], f"{key}.files.{name}") for name in names]
    counts = [count_lines(path) for path in paths]
    if len(set(counts)) > 1:
        sizes = ", ".join(f"{path} has {count:,}" for path, count in zip(paths, counts, strict=True))
        raise UserError(f"{key}.files: the files must have equally many lines, but {sizes}.")
    for row in zip(*map(read_text_lines, paths), strict=True):
        texts = {name: _clean(text, place) for name, (place, text) in zip(names, row, strict=True)}
        yield Record(row[0][0], texts, {name: [texts.pop(name)] for name in lists})


def _local(file: str, key: str) -> Path:
    if is_url(file):
        raise UserError(f"{key}: {file} is behind a URL and was not fetched")
    try:
        return existing_file(file)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def text_of(row: Mapping[str, Any], name: str, place: str, key: str) -> str:
    """A field of a record as text. A whole number becomes its digits, and a dotted name leads into nested records.

    Raises:
        UserError: the field is missing or no text; names the place.
    """
    value = _value(row, name, place, key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{place}: {name!r} holds {kind_of(value)}, not text. Mend the record")
    return _clean(value, place)


def _texts(row: Mapping[str, Any], name: str, place: str, key: str) -> list[str]:
    value = _value(row, name, place, key)
    if not isinstance(value, list):
        return [text_of(row, name, place, key)]
    if not value or not all(isinstance(text, str) for text in value):
        raise UserError(f"{place}: {name!r} must be a text or a list of at least one text. Mend the record")
    return [_clean(text, place) for text in value]


def _value(row: Mapping[str, Any], name: str, place: str, key: str) -> Any:
    value = value_of(row, name, place, key)
    if isinstance(value, Fault):
        raise UserError(value.message)
    return value


def _clean(text: str, place: str) -> str:
    if "\0" in text:
        raise UserError(f"{place}: has a NUL character, so this is not text. Mend the record")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # tables keep bytes that are not UTF-8 as surrogates
        raise UserError(f"{place}: is not UTF-8 at character {error.start + 1} of the text. Mend the record") from None
    return text
