"""What is wrong where a file can't be written: a full disk, a quota, a read-only disk, no permission, a long name.

Such an error is the user's to mend. `disk_trouble` recognises it in whatever exception it arrives, and makes one
message of it; the command, a worker and a collective of the ranks ask it (jobs/__main__.py,
jobs/training/worker.py, ranks.py).
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transloom.pipeline.errors import UserError

FULL, QUOTA, READ_ONLY, TOO_LARGE = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG
REFUSED = (errno.EACCES, errno.EPERM)
TOO_LONG = errno.ENAMETOOLONG
# Libraries of C and Rust, SQLite, and Ray of another process tell it as text alone.
TEXTS = {
    FULL: re.compile(r"[Nn]o space left on device|database or disk is full|OutOfDisk|disk is full"),
    QUOTA: re.compile(r"[Dd]isk quota"),
    READ_ONLY: re.compile(r"[Rr]ead-only file system|readonly database"),
}
FULL_BELOW = 1 << 30  # bytes: what a library could not write may be large, and is gone again


def disk_trouble(error: BaseException, where: Path | None = None, is_sure: bool = False) -> str | None:
    """One message for a person: which file, what is wrong with its disk, what to do; None of any other error.

    Args:
        where: the folder that was written to, for errors that name no file. Where its disk has room, the message names
            the fullest of the places that a command writes to.
        is_sure: `where` is named in any case.
    """
    for one in _chain(error):
        number = _number(one)
        if number is None:
            continue
        file = _file(one)
        if number in REFUSED:
            if file is None:  # of a network or a process
                continue
            return (
                f"no permission for {file} ({os.strerror(number)}). Grant it to this user, or set output_dir elsewhere"
            )
        if number == TOO_LONG:
            return f"{file or where or 'a file'}: its name is too long for the file system. Choose a shorter one"
        place = where if is_sure else file
        if place is None:
            place = _fullest(where) if number == FULL else where or "a file of this command"
        return f"{_what(number, place)}. What is finished is kept: the same command goes on from there"
    return None


def is_disk_message(text: str) -> bool:
    """Whether a message tells of a disk that can't be written, so that another try is no use."""
    more = (os.strerror(TOO_LARGE), "no permission for", "its name is too long for the file system")
    return any(pattern.search(text) for pattern in TEXTS.values()) or any(one in text for one in more)


def refuse_unwritable(folder: Path) -> None:
    """Makes the folder where it is missing, and writes a file there for a moment.

    Raises:
        UserError: it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        message = disk_trouble(OSError(error.errno, error.strerror, str(folder)))
        raise UserError(message or f"output_dir: {folder} can't be written: {error.strerror}") from error


@contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turns what a full or read-only disk raises into a UserError that names the folder; everything else passes."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if _number(error) in (*REFUSED, None) or (message := disk_trouble(error, folder, is_sure=True)) is None:
            raise
        raise UserError(message) from error


def free_bytes(place: Path) -> int | None:
    """What this user may still write to the disk of a file or folder, there or not; None where that can't be told."""
    try:
        return shutil.disk_usage(_existing(place)).free
    except OSError:
        return None


def free_space(place: Path | str) -> str:
    """How much is free on the disk of a file or folder, there or not, for a person; empty where that can't be told."""
    if isinstance(place, str) and not place.startswith("/"):
        return ""
    try:
        folder = _existing(Path(place))
        state = os.statvfs(folder)
        if state.f_files and not state.f_favail:
            return "it can hold no more files"
        return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB free now"
    except OSError:
        return ""


def _what(number: int, place: Path | str) -> str:
    free = free_space(place)
    match number:
        case errno.ENOSPC:
            return (
                f"the disk is full: no space left for {place}{f' ({free})' if free else ''}. Free some space there, or "
                "use a larger disk (output_dir; TMPDIR for temporary files)"
            )
        case errno.EDQUOT:
            return f"the disk quota of this user is used up: no space left for {place}. Free some space, or raise it"
        case errno.EROFS:
            return f"{place} can't be written: its disk is a read-only file system. Mount it anew, or set output_dir"
        case _:
            return (
                f"{place} can't be written: {os.strerror(number)}, larger than the limit of this user (ulimit -f) or "
                "of the file system. Raise the limit, or use another disk (output_dir)"
            )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from. Ray has that in `cause`, and in a training's failures by worker."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        failures = getattr(one, "worker_failures", None)
        more = [one.__cause__, getattr(one, "cause", None), getattr(one, "controller_failure", None)]
        more += failures.values() if isinstance(failures, dict) else []
        waiting += [other for other in more if isinstance(other, BaseException)]


def _number(error: BaseException) -> int | None:
    """The error's errno if it is one of a disk's."""
    known = (FULL, QUOTA, READ_ONLY, TOO_LARGE, TOO_LONG, *REFUSED)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in known else None
    text = f"{type(error).__name__}: {error}"
    return next((number for number, pattern in TEXTS.items() if pattern.search(text)), None)


def _file(error: BaseException) -> str | None:
    """The file that an OSError is of; of two, the one that was to be made."""
    if not isinstance(error, OSError):
        return None
    file = error.filename2 or error.filename
    return os.fsdecode(file) if isinstance(file, (str, bytes, os.PathLike)) else None


def _fullest(where: Path | None) -> Path | str:
    """The place with the least room of those that a command writes to; `where` of two with the same."""
    places = [*([where] if where else []), Path(tempfile.gettempdir()), Path("/tmp"), Path("/dev/shm"), Path.cwd()]
    free = {place: left for place in places if (left := free_bytes(place)) is not None}
    place = min(free, key=free.__getitem__, default=None)
    if place is None or free[place] > FULL_BELOW:  # there is room again
        return "a file of this command"
    return place


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.exists())
