"""Reads text files as lines of bytes, one line for each line feed; memory does not grow with the file."""

import gzip
import io
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from transloom.pipeline.errors import UserError

MAX_LINE_BYTES = 1 << 20  # no sentence is longer; the rest of a longer line is never in memory
BOM = b"\xef\xbb\xbf"
PACKED = (".gz", ".xz", ".zst")  # endings of compressed files that `open_text` unpacks


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


def unpacked_name(name: str) -> str:
    """The name without the ending of a compressed file."""
    ending = next((ending for ending in PACKED if name.endswith(ending)), "")
    return name.removesuffix(ending)


@contextmanager
def open_text(path: Path) -> Iterator[IO[bytes]]:
    """Opens the file's bytes, unpacked if its name ends in .gz, .xz or .zst.

    Raises:
        UserError: the compressed file is truncated, or the file is not readable.
    """
    try:
        with _unpacked(path) as file:
            yield file
    except (gzip.BadGzipFile, lzma.LZMAError, EOFError, zlib.error, BadZstdFile) as error:
        form = {".gz": "gzip", ".xz": "xz"}.get(path.suffix, "zstd")
        remedy = f"Fetch it again, or take {path.suffix} off its name if it is plain text"
        raise UserError(f"{path}: not a whole {form} file ({error}). {remedy}.") from error
    except PermissionError as error:
        raise UserError(f"{path}: not readable by this user. Change its permissions.") from error


def _unpacked(path: Path) -> IO[bytes]:
    match path.suffix:
        case ".gz":
            return gzip.open(path)  # type: ignore[return-value]
        case ".xz":
            return lzma.open(path)  # type: ignore[return-value]
        case ".zst":
            return io.BufferedReader(_ZstdFile(path), 1 << 20)
        case _:
            return open(path, "rb")


class BadZstdFile(OSError):
    """The bytes of a .zst file are no whole zstd stream."""


class _ZstdFile(io.RawIOBase):
    """The unpacked bytes of a .zst file, by pyarrow: Python has zstd from 3.14 on."""

    def __init__(self, path: Path) -> None:
        import pyarrow  # the import takes a second, and few corpora need it

        self._stream = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path), "rb"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            raise BadZstdFile(str(error)) from error
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


def count_lines(path: Path) -> int:
    """The number of lines as by `wc -l`, plus a last line without a line feed."""
    lines, last = 0, b"\n"
    with open_text(path) as file:
        while block := file.read(1 << 20):
            lines += block.count(b"\n")
            last = block[-1:]
    return lines + (last != b"\n")


def line_cuts(path: Path, every: int) -> Iterator[int]:
    """The byte offsets in a plain file at which lines `every`, 2 `every`, … (from 0) begin. A last line without a line
    feed is a line; no offset is the file's end."""
    size, start, lines = path.stat().st_size, 0, 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            count = block.count(b"\n")
            if lines + count >= every:
                ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
                cuts = (start + int(ends[i]) for i in range(every - lines - 1, count, every))
                yield from (cut for cut in cuts if cut < size)
            lines = (lines + count) % every
            start += len(block)


def read_lines(path: Path) -> Iterator[bytes]:
    """Yields each line without its line feed, one carriage return before it, and the byte order mark of the file.

    Lines end at the line feed only: U+2028, U+0085, form feeds and lone carriage returns are part of a line.
    Of a line longer than MAX_LINE_BYTES only the first MAX_LINE_BYTES + 1 bytes are yielded.
    """
    with open_text(path) as file:
        yield from _lines_from(file, at_start=True)


def read_lines_at(path: Path, offset: int, count: int) -> Iterator[bytes]:
    """As `read_lines`, `count` lines of a plain file, the first of which begins at the byte `offset`."""
    with open_text(path) as file:
        file.seek(offset)
        yield from islice(_lines_from(file, at_start=offset == 0), count)


def _lines_from(file: IO[bytes], at_start: bool) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield line
        else:
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            yield line.removeprefix(BOM) if at_start else line
        at_start = False


def stream_lines(stream: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of standard input, without their ends and the byte order mark, as `read_lines` has those of a file."""
    for number, line in enumerate(stream):
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        yield line.removeprefix(BOM) if number == 0 else line
