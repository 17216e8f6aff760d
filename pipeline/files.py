"""Files that are whole or absent: atomic writes, hashes, and the folder that a stage fills once."""

import dataclasses
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from pipeline.disk import explain_full_disk
from pipeline.errors import UserError
from pipeline.secrets import redacted
from pipeline.untrusted import NotWellFormed, open_plain

MANIFEST = "manifest.json"


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Gives a binary file that becomes `path` when the block ends, and leaves nothing behind when it raises."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a write that fails does not name its file
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Makes the folder's own entries (new names, renames) survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` atomically, keys sorted, so that equal values are equal files."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, default=_plain).encode() + b"\n")


def read_json(path: Path) -> Any:
    """
    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is no plain file (then an OSError, too), or holds no JSON (then a ValueError, too).
    """
    with open_plain(path) as file:
        data = file.read()
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotWellFormed(f"{path} is damaged, it is no JSON: {error}. Restore it from a copy") from error


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(value: Any) -> str:
    """SHA-256 (hex) of the value's canonical JSON; dataclasses, enumerations and paths count as what they hold."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(canonical.encode()).hexdigest()


def without_defaults(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from the defaults of its class, nested ones likewise.

    A hash of them survives a new field: who does not set the field has the same settings as before. It changes its
    meaning, unseen, when a default changes, so such a hash needs a format number beside it.
    """
    changed: dict[str, Any] = {}
    defaults = type(settings)()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            if nested := without_defaults(value):
                changed[field.name] = nested
        elif value != getattr(defaults, field.name):
            changed[field.name] = value
    return changed


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


@dataclass(frozen=True)
class Stage:
    """A finished stage: its folder, its manifest, and whether (and for how long) it was built just now."""

    folder: Path
    manifest: dict[str, Any]
    skipped: bool
    seconds: float


class NotBuilt(Exception):
    """A stage that was only to be found is not there; the argument is the folder it would have."""


def stage(
    root: Path, name_prefix: str, config: Any, inputs: dict[str, str], build: Callable[[Path], dict[str, Any]] | None
) -> Stage:
    """Runs `build` once for each different (config, inputs) and keeps its folder under `root`.

    `build` fills the empty folder that it is given and returns counts for the manifest. The folder gets its final
    name only when it is complete, so an unfinished stage is never taken for a finished one. Processes that build
    the same stage at the same time do not disturb each other: the first to finish wins, the others take its result.

    Args:
        config: all settings that the result depends on (anything that `hash_of` takes).
        inputs: names and hashes of what is read.
        build: None where the stage is only to be found.

    Raises:
        NotBuilt: there is no such stage yet, and no `build`.
        UserError: when the disk is full. After any exception the unfinished folder is removed.
    """
    started_at = time.monotonic()
    key = hash_of({"config": config, "inputs": inputs})
    folder = root / f"{name_prefix}{key[:12]}"
    manifest = _verified_manifest(folder, key)
    if manifest is not None:
        return Stage(folder, manifest, skipped=True, seconds=time.monotonic() - started_at)
    if build is None:
        raise NotBuilt(folder)

    with explain_full_disk(folder):
        try:
            root.mkdir(parents=True, exist_ok=True)
        except (PermissionError, FileExistsError, NotADirectoryError) as error:
            raise UserError(f"can't make the folder {root}: {error.strerror}. Set output_dir elsewhere.") from error
        _remove_abandoned(folder)
        temporary = folder.with_name(f"{folder.name}.tmp-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")
        temporary.mkdir()
        try:
            counts = build(temporary)
            manifest = {
                "key": key,
                "config": config,
                "inputs": inputs,
                "counts": counts,
                "files": {path.relative_to(temporary).as_posix(): _sealed(path) for path in _files_below(temporary)},
                "elapsed_seconds": round(time.monotonic() - started_at, 3),
            }
            write_json(temporary / MANIFEST, redacted(manifest))
            _install(temporary, folder, key)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    # Read back, so that a stage just built and a stage skipped give the same plain JSON values.
    return Stage(folder, read_json(folder / MANIFEST), skipped=False, seconds=time.monotonic() - started_at)


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sealed(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _verified_manifest(folder: Path, key: str) -> dict[str, Any] | None:
    """The manifest if it is of this key and every file has its size. (Contents are not hashed again: skipping must
    stay a matter of milliseconds.)"""
    try:
        manifest = read_json(folder / MANIFEST)
        complete = manifest["key"] == key and all(
            (folder / name).stat().st_size == file["bytes"] for name, file in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if complete else None


def _install(temporary: Path, folder: Path, key: str) -> None:
    while True:
        try:
            os.rename(temporary, folder)  # fails where a folder with contents has the name already
            fsync_folder(folder.parent)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        if _verified_manifest(folder, key) is not None:
            return  # another process was faster; its result is as good as ours
        with suppress(FileNotFoundError):  # damaged: out of the way, and try again
            damaged = folder.with_name(f"{temporary.name}-damaged")
            os.rename(folder, damaged)
            shutil.rmtree(damaged)


def _remove_abandoned(folder: Path) -> None:
    """Removes what builders of this stage left when they were killed: those of this host whose process is gone."""
    prefix = f"{folder.name}.tmp-{socket.gethostname()}-"
    for left in folder.parent.glob(f"{prefix}*"):
        process = left.name.removeprefix(prefix).split("-")[0]
        if not Path("/proc", process).exists():
            shutil.rmtree(left, ignore_errors=True)


def database_uri(file: Path) -> str:
    """The address of a SQLite database, for SQLAlchemy, which reads %20 and ? in it as a web address has them."""
    path = str(file.absolute())
    if "%" not in path and "?" not in path:
        return f"sqlite:///{path}"
    # Of "sqlite:" MLflow would take the path as it stands, and make its folder.
    return f"sqlite+pysqlite:///{path.replace('%', '%25').replace('?', '%3F')}"


def database_file(uri: str) -> Path | None:
    """The file of a SQLite database's address; None of any other address."""
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]*)", uri)
    return Path(unquote(found[1])) if found else None
