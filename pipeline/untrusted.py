"""Small files that may come from elsewhere, read with care: no pipe or device is opened, no size is believed, and what
is wrong is a UserError that names the file."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from transloom.pipeline.errors import UserError

MAX_BYTES = 16 * 2**20  # of a JSON file
MAX_YAML_BYTES = 2**20
MAX_DEPTH = 50
MAX_NODES = 10_000  # of a YAML file whose aliases are written out
MAX_INTERPOLATIONS = 20  # ${…}: each may name a text with several more


class NotWellFormed(UserError, ValueError):
    """A file holds something else than its kind of file should."""


class NotReadable(UserError, OSError):
    """A file can't be read, or is none."""


def inside(folder: Path, name: str) -> Path:
    """The file of that name below the folder, there or not.

    Raises:
        UserError: the name leads elsewhere: it is absolute, climbs by "..", or passes a link to somewhere else.
    """
    file, parts = folder / name, PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or "\0" in name:
        raise NotReadable(f"{folder}: a file named {name!r} would lie elsewhere. Take the folder from another copy")
    if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder)):
        raise NotReadable(f"{file} lies elsewhere, behind a link. Put a copy of the file in the link's place")
    return file


@contextmanager
def open_plain(file: Path) -> Iterator[BufferedReader]:
    """Opens a plain file for reading.

    Raises:
        FileNotFoundError: it is not there.
        UserError: it is a folder, a pipe or a device, or may not be read.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
    except FileNotFoundError:
        raise
    except OSError as error:
        raise NotReadable(
            f"{file} can't be read: {error.strerror}. Look at its permissions, or copy it anew"
        ) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "folder" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else "device or socket"
        raise NotReadable(f"{file} is a {kind}, and must be a plain file. Put a copy of the right file there")
    with open(descriptor, "rb") as opened:
        yield opened


def read_small(file: Path, limit: int = MAX_BYTES) -> bytes:
    """A file's bytes, which are not more than `limit`.

    Raises:
        FileNotFoundError, UserError: as `open_plain`; or the file is larger.
    """
    with open_plain(file) as opened:
        data = opened.read(limit + 1)
    if len(data) > limit:
        raise NotWellFormed(f"{file} has more than {limit:,} bytes: it is something else than it should be")
    return data


def read_foreign_json(file: Path) -> Any:
    """The value in a JSON file.

    Raises:
        FileNotFoundError, UserError: as `read_small`; or it is no JSON: not UTF-8, nested too deeply, with a key twice
            in one object, with NaN or Infinity.
    """
    data = read_small(file)
    try:
        return json.loads(data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise NotWellFormed(f"{file} is not the JSON that it should be: nested too deeply. Copy it anew") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise NotWellFormed(f"{file} is not the JSON that it should be: {error}. Copy it anew") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return values


def read_yaml(file: Path, loader: Any = yaml.SafeLoader) -> Any:
    """The value in a YAML file; plain data, whatever the loader.

    Args:
        loader: yaml.SafeLoader or a subclass.
    Raises:
        FileNotFoundError, UserError: as `read_small`; or it is no YAML, or one that would grow: see `parse_yaml`.
    """
    return parse_yaml(read_small(file, MAX_YAML_BYTES), str(file), loader)


def parse_yaml(data: bytes | str, name: str, loader: Any = yaml.SafeLoader) -> Any:
    """The value of a YAML text.

    Args:
        name: of the text, for messages.
    Raises:
        UserError: it is no YAML; or its lists are nested more than MAX_DEPTH deep, it has more than MAX_NODES values
            once its aliases are written out, or more than MAX_INTERPOLATIONS `${…}`.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        _refuse_growth(text, name)
        return yaml.load(text, Loader=loader)
    except UnicodeDecodeError as error:
        raise NotWellFormed(f"{name}: is not UTF-8 ({error.reason} at byte {error.start})") from None
    except yaml.YAMLError as error:
        raise NotWellFormed(f"{name}: {error}") from error
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise NotWellFormed(f"{name}: is not YAML that can be read: {error}") from error


def _refuse_growth(text: str, name: str) -> None:
    """Counts what the text's events come to, without building anything."""
    if text.count("${") > MAX_INTERPOLATIONS:
        raise NotWellFormed(f"{name}: has more than {MAX_INTERPOLATIONS} interpolations ${{…}}; write values out")
    sizes: dict[str, int] = {}  # of what each anchor names
    opened: list[tuple[str | None, int]] = []  # lists and mappings: their anchor, and the count where they began
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:  # one that is still open would hold itself
                raise NotWellFormed(f"{name}, line {line}: the alias *{event.anchor} names nothing before it")
            count += sizes[event.anchor]
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, count))
            count += 1
            if len(opened) > MAX_DEPTH:
                raise NotWellFormed(f"{name}, line {line}: is nested more than {MAX_DEPTH} deep; write it flatter")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1 + len(event.value) // 100
        if count > MAX_NODES:
            raise NotWellFormed(
                f"{name}, line {line}: comes to more than {MAX_NODES:,} values with its aliases (*name) written out; "
                "leave the aliases out"
            )


def refuse_deep_words(words: list[str]) -> None:
    """
    Raises:
        UserError: words of a command whose values would take the parser's stack or the machine's memory.
    """
    if sum(word.count("${") for word in words) > MAX_INTERPOLATIONS:
        raise UserError(f"the command has more than {MAX_INTERPOLATIONS} interpolations ${{…}}; write values out")
    for word in words:
        key = word.partition("=")[0][:60]
        depth = 0
        for character in word:
            depth += (character in "[{(") - (character in "]})")
            if depth > MAX_DEPTH:
                raise UserError(f"{key}: is nested more than {MAX_DEPTH} deep; write it flatter")
