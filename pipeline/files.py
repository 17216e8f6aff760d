"""Files and folders that are whole or absent: atomic writes, hashes, and the folder that a stage fills once."""

import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from transloom.pipeline.disk import explain_full_disk
from transloom.pipeline.errors import UserError
from transloom.pipeline.secrets import redacted
from transloom.pipeline.untrusted import NotReadable, NotWellFormed, inside, open_plain

MANIFEST = "manifest.json"


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Gives a binary file that becomes `path` when the block ends, and leaves nothing behind when it raises. A pipe
    or a device, such as /dev/null, is written to as it is."""
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            yield file
        return
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


@contextmanager
def sealed_folder(folder: Path, is_kept: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """Gives an empty folder that becomes `folder` when the block ends, with all of it on the disk, and leaves nothing
    behind when the block raises. The block writes the manifest last.

    Args:
        is_kept: asked where another folder has the name by then: whether that one stays. Otherwise it is replaced.
    """
    _remove_abandoned(folder)
    temporary = folder.with_name(f"{folder.name}.tmp-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")
    replaced = temporary.with_name(f"{temporary.name}-replaced")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _sync(temporary)
        while not _rename(temporary, folder) and not is_kept():
            shutil.rmtree(replaced, ignore_errors=True)
            with suppress(FileNotFoundError):  # another process was faster
                os.rename(folder, replaced)
        fsync_folder(folder.parent)
    finally:
        for left in (temporary, replaced):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def kept_work(temporary: Path) -> Iterator[Path]:
    """Gives a folder for the parts of a stage that is being built, beside the stage's own. A kill leaves the folder,
    and the next build of the same stage finds the parts in it. It is removed when the block ends, and after a UserError
    or an error of the disk.

    Where another process builds the same stage, the folder is one inside `temporary`, which nobody else finds.

    Args:
        temporary: the folder that `sealed_folder` gave.
    """
    work = temporary.with_name(f"{temporary.name.partition('.tmp-')[0]}.work")
    lock = _lock(work)
    if lock is None:
        work = temporary / "work"
        work.mkdir()
    is_kept = False
    try:
        yield work
    except (UserError, OSError):
        raise
    except BaseException:
        is_kept = True
        raise
    finally:
        if not is_kept:
            shutil.rmtree(work, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(work: Path) -> int | None:
    """Makes a folder and locks it; None where another process has it. Closing the descriptor gives the folder free."""
    while True:
        work.mkdir(exist_ok=True)
        try:
            lock = os.open(work / "lock", os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # the process that had the folder has just removed it
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:
                return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except OSError:  # a file system without locks
            os.close(lock)
            return None
        os.close(lock)


def _rename(source: Path, target: Path) -> bool:
    """Whether it could be done: not where a folder with contents has the name already."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    return True


def _sync(folder: Path) -> None:
    for file in _files_below(folder):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
    for path, _, _ in os.walk(folder):
        fsync_folder(Path(path))


def _remove_abandoned(folder: Path) -> None:
    """Removes what writers of this folder left when they were killed: those of this host whose process is gone."""
    prefix = f"{folder.name}.tmp-{socket.gethostname()}-"
    for left in folder.parent.glob(f"{prefix}*"):
        process = left.name.removeprefix(prefix).split("-")[0]
        if not Path("/proc", process).exists():
            shutil.rmtree(left, ignore_errors=True)


def measured_files(folder: Path) -> dict[str, dict[str, Any]]:
    """What a manifest says of the files below its folder: by name, "bytes" and "sha256"."""
    return {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
        for file in _files_below(folder)
    }


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damaged_files(
    folder: Path, files: Mapping[str, Mapping[str, Any]], with_hashes: bool = True
) -> Iterator[tuple[str, str]]:
    """The names of the files that are not what a manifest says was written, each with a sentence about it.

    Args:
        files: by name, "bytes" and "sha256", of which one may be missing. The names may be anybody's.
        with_hashes: the files are read; otherwise their sizes alone are compared, in milliseconds.
    """
    for name, written in files.items():
        file = folder / name
        try:
            with open_plain(inside(folder, name)) as opened:
                size = os.fstat(opened.fileno()).st_size
                if size != written.get("bytes", size):
                    yield name, f"{file} is damaged: {size} bytes instead of {written['bytes']}"
                elif with_hashes and hashlib.file_digest(opened, "sha256").hexdigest() != written.get("sha256"):
                    yield name, f"{file} is damaged: its SHA-256 is not what was written"
        except FileNotFoundError as error:
            yield name, f"{file} can't be read: {error.strerror}"
        except NotReadable as error:
            yield name, str(error)


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


def absolute_path(path: str) -> str:
    """The path counted from the working directory, ~ expanded; an address (s3://…) as it is."""
    return path if "://" in path else str(Path(os.path.expanduser(path)).absolute())


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
        with sealed_folder(folder, is_kept=lambda: _verified_manifest(folder, key) is not None) as temporary:
            counts = build(temporary)
            manifest = {
                "key": key,
                "config": config,
                "inputs": inputs,
                "counts": counts,
                "files": measured_files(temporary),
                "elapsed_seconds": round(time.monotonic() - started_at, 3),
            }
            write_json(temporary / MANIFEST, redacted(manifest))
    # Read back, so that a stage just built and a stage skipped give the same plain JSON values.
    return Stage(folder, read_json(folder / MANIFEST), skipped=False, seconds=time.monotonic() - started_at)


def _verified_manifest(folder: Path, key: str) -> dict[str, Any] | None:
    """The manifest if it is of this key and every file has its size. (Contents are not hashed again: skipping must
    stay a matter of milliseconds.)"""
    try:
        manifest = read_json(folder / MANIFEST)
        complete = manifest["key"] == key and not any(damaged_files(folder, manifest["files"], with_hashes=False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if complete else None


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
