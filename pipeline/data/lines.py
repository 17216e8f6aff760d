"""Reads text files as lines of bytes, one line for each line feed; memory does not grow with the file."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import UserError

MAX_LINE_BYTES = 1 << 20  # no sentence is longer; the rest of a longer line is never in memory
BOM = b"\xef\xbb\xbf"


def existing_file(path: str | Path) -> Path:
    """The file itself or, if missing, the file with .gz behind its name.

    Raises:
        UserError: both are missing.
    """
    for candidate in (Path(path), Path(f"{path}.gz")):
        if candidate.is_file():
            return candidate
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder: name a file in it")
    raise UserError(f"no such file: {path} (nor {path}.gz)")


@contextmanager
def open_text(path: Path) -> Iterator[IO[bytes]]:
    """Opens the file's bytes, unpacked if its name ends in .gz.

    Raises:
        UserError: the gzip file is truncated, or the file is not readable.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            yield file  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        remedy = "Fetch it again, or take .gz off its name if it is plain text"
        raise UserError(f"{path}: not a whole gzip file ({error}). {remedy}.") from error
    except PermissionError as error:
        raise UserError(f"{path}: not readable by this user. Change its permissions.") from error


def count_lines(path: Path) -> int:
    """The number of lines as by `wc -l`, plus a last line without a line feed."""
    lines, last = 0, b"\n"
    with open_text(path) as file:
        while block := file.read(1 << 20):
            lines += block.count(b"\n")
            last = block[-1:]
    return lines + (last != b"\n")


def read_lines(path: Path) -> Iterator[bytes]:
    """Yields each line without its line feed, one carriage return before it, and the byte order mark of the file.

    Lines end at the line feed only: U+2028, U+0085, form feeds and lone carriage returns are part of a line.
    Of a line longer than MAX_LINE_BYTES only the first MAX_LINE_BYTES + 1 bytes are yielded.
    """
    with open_text(path) as file:
        at_start = True
        while line := file.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield line
            else:
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                yield line.removeprefix(BOM) if at_start else line
            at_start = False
