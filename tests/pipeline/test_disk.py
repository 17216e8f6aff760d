"""A disk that can't be written is told in one message, in whatever exception it arrives."""

import errno
import os
import resource
from pathlib import Path

import pytest
from disks import remount, small_disk

from transloom.pipeline.disk import disk_trouble, explain_full_disk, is_disk_message
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import write_json
from transloom.pipeline.ranks import on_rank_zero


def _error(number: int, file: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), file) if file else OSError(number, os.strerror(number))


def _raise(error: BaseException):
    raise error


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, r"the disk is full: no space left for {} \("),
        (errno.EDQUOT, "the disk quota of this user is used up: no space left for {}"),
        (errno.EROFS, "{} can't be written: its disk is a read-only file system"),
        (errno.EFBIG, "{} can't be written: File too large"),
        (errno.EACCES, "no permission for {}"),
        (errno.EPERM, "no permission for {}"),
        (errno.ENAMETOOLONG, "{}: its name is too long for the file system"),
    ],
)
def test_each_trouble_names_the_file(tmp_path: Path, number: int, said: str):
    file = str(tmp_path / "run" / "x.json")
    message = disk_trouble(_error(number, file))
    pattern = pytest.raises(UserError, match=said.format(file))
    with pattern:
        raise UserError(message)
    assert message and "\n" not in message and is_disk_message(message)
    with pattern:
        on_rank_zero(lambda: _raise(_error(number, file)))


def test_it_is_seen_behind_what_libraries_make_of_it(tmp_path: Path):
    class Failed(Exception):
        def __init__(self, **more: object) -> None:
            self.__dict__ |= more

    full = _error(errno.ENOSPC, "/disk/file")
    caused = RuntimeError("anything")
    caused.__cause__ = full
    for error in (caused, Failed(cause=full), Failed(worker_failures={0: ValueError(), 1: Failed(cause=full)})):
        assert "/disk/file" in (disk_trouble(error) or "")
    texts = (
        "I/O error: No space left on device (os error 28)",
        "(sqlite3.OperationalError) database or disk is full",
        "attempt to write a readonly database",
        "[Errno 122] Disk quota exceeded",
    )
    for text in texts:
        assert str(tmp_path) in (disk_trouble(RuntimeError(text), tmp_path, is_sure=True) or ""), text
        with pytest.raises(UserError):
            on_rank_zero(lambda text=text: _raise(RuntimeError(text)))


@pytest.mark.parametrize(
    "error", [ValueError("x"), ConnectionRefusedError(111, "refused"), PermissionError(13, "a port"), KeyError("disk")]
)
def test_other_errors_are_left_alone(error: Exception, tmp_path: Path):
    assert disk_trouble(error, tmp_path) is None
    with pytest.raises(type(error)), explain_full_disk(tmp_path):
        raise error


def test_a_write_that_fails_names_its_file(tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError) as failed:
            write_json(tmp_path / "progress.json", "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failed.value.filename == str(tmp_path / "progress.json")
    assert list(tmp_path.iterdir()) == []


def test_a_full_and_a_read_only_disk_for_real(tmp_path: Path):
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        file = disk / "progress.json"
        write_json(file, "before")
        with pytest.raises(OSError) as full:
            write_json(file, "x" * (100 << 10))
        message = disk_trouble(full.value) or ""
        assert f"no space left for {file} (0.1 MB free now)" in message
        assert [one.name for one in disk.iterdir()] == ["progress.json"]
        (disk / "rest").write_bytes(b"x" * (60 << 10))  # it is full: a library that names no file
        assert f"no space left for {disk} (0.0 MB free now)" in (disk_trouble(_error(errno.ENOSPC), disk) or "")
        remount(disk, "ro")
        with pytest.raises(OSError) as read_only:
            write_json(file, "after")
        assert f"{file} can't be written" in (disk_trouble(read_only.value) or "")
        with pytest.raises(UserError, match="read-only"), explain_full_disk(disk):
            write_json(file, "after")
