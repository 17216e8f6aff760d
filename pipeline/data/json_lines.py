"""Reads and writes files with a JSON object a line. Every fault is a UserError that names file and line."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transloom.pipeline.data.formats import HEAD_BYTES, refuse_binary
from transloom.pipeline.data.lines import MAX_LINE_BYTES, existing_file, open_text, read_lines, unpacked_name
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import atomic_write

NAMES = (".jsonl", ".json", ".ndjson")


def is_json_lines(path: Path) -> bool:
    """Whether the file holds JSON lines, by its name."""
    return Path(unpacked_name(path.name)).suffix in NAMES


def read_text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (place, line), the place as in "file, line 3".

    Raises:
        UserError: the file is missing or is not text in UTF-8, or a line is too long.
    """
    path = existing_file(path)
    with open_text(path) as file:
        refuse_binary(path, file.read(HEAD_BYTES))
    for number, line in enumerate(read_lines(path), start=1):
        where = f"{path}, line {number}"
        if len(line) > MAX_LINE_BYTES:
            raise UserError(f"{where}: the line has more than {MAX_LINE_BYTES:,} bytes. Split it")
        try:
            yield where, line.decode()
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where}: is not UTF-8 ({error.reason} at byte {error.start + 1}). Mend the line"
            ) from None


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, object) of each line, the place as in "file, line 3". Blank lines are skipped.

    Raises:
        UserError: as `read_text_lines`; or a line is no JSON object, or its text can't be written as UTF-8.
    """
    for where, line in read_text_lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            # json's own message counts lines, too, of this one line.
            fault = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
            raise UserError(f"{where}: is not JSON: {fault}. Each line must be an object, {{…}}") from None
        if not isinstance(value, dict):
            raise UserError(f"{where}: must be an object, {{…}}, not {shorten(value)}")
        if not _is_utf8(value):
            raise UserError(f"{where}: has half of a surrogate pair (\\ud800 to \\udfff), which is no character")
        yield where, value


def _is_utf8(value: Any) -> bool:
    """Whether all texts in a JSON value can be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def text_field(where: str, record: Mapping[str, Any], name: str) -> str:
    """
    Raises:
        UserError: the record lacks the field, or the field is no text.
    """
    if name not in record:
        raise UserError(f'{where}: has no "{name}"')
    if not isinstance(record[name], str):
        raise UserError(f'{where}: "{name}" must be a text, not {shorten(record[name])}')
    return record[name]


def id_field(where: str, record: Mapping[str, Any]) -> str | None:
    """The optional "id", a text or a whole number, as text.

    Raises:
        UserError: the id is something else.
    """
    value = record.get("id")
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise UserError(f'{where}: "id" must be a text or a whole number, not {shorten(value)}')
    return None if value is None else str(value)


def json_line(record: Mapping[str, Any]) -> str:
    """The record as a line of JSON, with its line feed."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    """Writes the file whole or not at all, and returns the number of records."""
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        for record in records:
            file.write(json_line(record).encode())
            count += 1
    return count


def shorten(value: Any) -> str:
    """The value as JSON, cut to 60 characters."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:60]}…"
