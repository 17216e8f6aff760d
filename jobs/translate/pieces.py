"""A long file translated in pieces, by tasks of a Ray cluster. What was finished is kept, so that a translation that
was stopped goes on."""

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from transloom.jobs.runs.model import computing_device
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import atomic_write, hash_of, read_json, write_json
from transloom.pipeline.generate.line_files import LineSettings, translate_lines
from transloom.pipeline.generate.translator import Translator
from transloom.pipeline.model_folder import read_about
from transloom.pipeline.progress import MapTasks, Progress

PIECE_LINES = 1000
RECORD = "pieces.json"
SHOWN_WARNINGS = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """Consecutive lines of the source, without line feeds. `first_line`: the number of the first, from 1."""

    models: tuple[str, ...]
    settings: LineSettings
    first_line: int
    lines: list[bytes]
    source: str


def translate_in_pieces(
    models: Sequence[Path],
    lines: Iterable[bytes],
    settings: LineSettings,
    target: Path,
    map_tasks: MapTasks,
    *,
    source: str,
    digest: str,
    header: bytes,
    first_line: int,
    total: int,
    progress: Progress,
    piece_lines: int = PIECE_LINES,
) -> None:
    """Writes the translations of all lines to `target`, with the same bytes whatever the number and order of tasks.

    A piece's result is written to the folder <target>.pieces as soon as it is there; a later call with the same models,
    settings and source goes on with the pieces that are missing. In the end the folder becomes the file.

    Args:
        map_tasks: see `map_over_cluster`; its results may come in any order.
        source: the file's name; digest: of its content.
        header: what the file begins with. first_line: the number of the first of `lines`.
        total: the number of lines.
    Raises:
        UserError: the folder has pieces of something else; see `translate_lines`.
    """
    folder = target.with_name(f"{target.name}.pieces")
    key = hash_of(
        {
            "models": [read_about(model)["sha256"] for model in models],
            "settings": settings,
            "source": digest,
            "first_line": first_line,
            "piece_lines": piece_lines,
        }
    )
    _begin(folder, key, target)
    names: list[str] = []
    done = 0

    def missing() -> Iterator[Piece]:
        nonlocal done
        stream = iter(lines)
        start = first_line
        while part := list(islice(stream, piece_lines)):
            names.append(_name(start))
            if (folder / names[-1]).exists():
                done += len(part)
            else:
                yield Piece(tuple(map(str, models)), settings, start, part, source)
            start += len(part)

    progress("translating, lines", 0, total)
    warnings = 0
    for start, count, text, messages in map_tasks(translate_piece, missing()):
        with atomic_write(folder / _name(start)) as file:
            file.write(text)
        done += count
        for message in messages[: max(0, SHOWN_WARNINGS - warnings)]:
            log.warning("%s", message)
        warnings += len(messages)
        progress("translating, lines", done, total)
    if warnings > SHOWN_WARNINGS:
        log.warning("%d further warnings of lines were left out", warnings - SHOWN_WARNINGS)
    with atomic_write(target) as file:
        file.write(header)
        for name in names:
            file.write((folder / name).read_bytes())
    shutil.rmtree(folder)


def translate_piece(piece: Piece) -> tuple[int, int, bytes, list[str]]:
    """The number of a piece's first line, how many lines it has, their output, and warnings."""
    with _warnings() as messages:
        text = translate_lines(
            _translator(piece.models), piece.lines, piece.settings, piece.first_line, piece.source, lambda done: None
        )
    return piece.first_line, len(piece.lines), text, messages


def _name(first_line: int) -> str:
    return f"from_line_{first_line:012d}"


def _begin(folder: Path, key: str, target: Path) -> None:
    """Makes the folder of the pieces, unless it is there with this key.

    Raises:
        UserError: it is there with another, or can't be made.
    """
    record = folder / RECORD
    if record.exists():
        if read_json(record)["key"] != key:
            raise UserError(
                f"output: {folder} has the pieces of another translation to {target} (another source, model or other "
                "settings). Take the words of that command to go on with it, or remove the folder"
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output: can't make the folder {folder}: {error.strerror}. Name another file") from None
    write_json(record, {"key": key})


@lru_cache(maxsize=1)
def _translator(models: tuple[str, ...]) -> Translator:
    """Kept in the task's process, which does piece after piece."""
    return Translator.load(list(models), *computing_device())


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """The warnings of translating, which the log of a task's process would hide."""
    messages: list[str] = []
    handler = _Collector(messages.append)
    logger = logging.getLogger(Translator.__module__)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


class _Collector(logging.Handler):
    def __init__(self, take: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self.take = take

    def emit(self, record: logging.LogRecord) -> None:
        self.take(record.getMessage())
