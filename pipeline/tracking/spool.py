"""What a run reports goes to a file first: a slow, failing or absent tracking server can't stop or slow a training.

A spool is a file of JSON lines in the run's folder. Each file has one writer: rank 0 of the training writes
`metrics.jsonl`, the driver `driver.jsonl`. `pipeline.tracking.uploader` follows them and uploads what it finds.
A line is either a group of points

    {"step": 100, "time_ms": 1795344607000, "metrics": {"train/loss": 4.2}}     (also "model" and "dataset", see below)

or something else to be done, named by its "do": params, tags, text, artifact, table, dataset, model, status.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transloom.pipeline.disk import disk_trouble
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json, write_json
from transloom.pipeline.run_folder import DRIVER_SPOOL, TRAINING_SPOOL
from transloom.pipeline.secrets import redacted
from transloom.pipeline.untrusted import open_plain

SPOOLS = (TRAINING_SPOOL, DRIVER_SPOOL)

log = logging.getLogger(__name__)


class Point(NamedTuple):
    """One value of one metric; `time_ms` is the wall clock in milliseconds since 1970."""

    key: str
    step: int
    value: float
    time_ms: int


def _complete_lines(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields (record, offset of the line's end) of the complete lines; the record is empty where a line is no object.

    A last line without its newline is still being written, or was torn by a kill: it is left for later.
    """
    if not path.exists():
        return
    with open_plain(path) as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = {}
            yield record if isinstance(record, dict) else {}, offset


def read_points(run_folder: Path) -> list[Point]:
    """All points of a run, in the order in which they were written; torn lines are passed over."""
    return [
        Point(key, record["step"], value, record["time_ms"])
        for name in SPOOLS
        for record, _ in _complete_lines(run_folder / name)
        if _is_whole(record)
        for key, value in record["metrics"].items()
        if isinstance(value, int | float)
    ]


def _is_whole(record: dict[str, Any]) -> bool:
    """Whether a record has points of a step at a time."""
    numbers = [record.get("step"), record.get("time_ms")]
    return isinstance(record.get("metrics"), dict) and all(isinstance(one, int) for one in numbers)


def driver_records(run_folder: Path) -> list[dict[str, Any]]:
    """What the driver's tracker recorded, in its order; see the module for what a record is."""
    return [record for record, _ in _complete_lines(run_folder / DRIVER_SPOOL)]


def last_status(run_folder: Path) -> str | None:
    """What the driver's tracker recorded last: RUNNING, FINISHED, FAILED or KILLED."""
    records = (record for record, _ in _complete_lines(run_folder / DRIVER_SPOOL))
    return next(iter([one.get("status") for one in records if one.get("do") == "status"][-1:]), None)


def last_end(run_folder: Path) -> int | None:
    """When the driver's tracker was closed last, in milliseconds since 1970; None where it never was, or where what
    came after that was never closed."""
    records = [record for record, _ in _complete_lines(run_folder / DRIVER_SPOOL) if record.get("do") == "status"]
    return records[-1].get("time_ms") if records else None


def last_written(run_folder: Path) -> int | None:
    """When a metric was logged last, in milliseconds since 1970."""
    return max((point.time_ms for point in read_points(run_folder)), default=None)


class MetricLog:
    """Appends lines to one spool. A line is one `write` to a file opened for appending, so a SIGKILL can only tear the
    last one, and what was written survives the process.

    A run that resumes repeats steps it has logged before: a metric whose step is already there is not written again.
    With `keep_changes` it is, where the value differs (a score measured anew with other settings).

    Lines that a full disk does not take are kept in memory, in their order, and written with the next one that it
    takes: nothing here raises because of the disk but `flush`.
    """

    def __init__(self, path: Path, keep_changes: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._keep_changes = keep_changes
        self._logged: dict[tuple[str, int], float] = {}
        end = 0
        for record, offset in _complete_lines(path):
            end = offset
            if _is_whole(record):
                self._logged |= {(key, record["step"]): value for key, value in record["metrics"].items()}
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)
        self._torn = path.stat().st_size > end
        self._unwritten: list[bytes] = []

    def append(self, metrics: Mapping[str, float], step: int, **extra: Any) -> bool:
        """Logs the metrics of a step that are not there yet; whether there were any."""
        fresh = {key: float(value) for key, value in metrics.items() if not self._known(key, step, float(value))}
        if fresh:
            self.write({"step": step, "time_ms": time.time_ns() // 1_000_000, "metrics": fresh, **extra})
            self._logged |= {(key, step): value for key, value in fresh.items()}
        return bool(fresh)

    def last_step(self, prefix: str) -> int:
        """The highest step of the metrics whose names begin with `prefix`; -1 where there are none."""
        return max((step for key, step in self._logged if key.startswith(prefix)), default=-1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record as it is, without the secrets in it."""
        had_trouble = bool(self._unwritten)
        self._unwritten.append(json.dumps(redacted(record), ensure_ascii=False).encode() + b"\n")
        try:
            self._write_all()
        except OSError as error:
            if not had_trouble:
                log.warning("%s can't be written: %s. Metrics are kept in memory; training goes on", self.path, error)
        else:
            if had_trouble:
                log.warning("%s can be written again; what had been kept in memory is there now", self.path)

    def flush(self) -> None:
        """Writes what a full disk did not take so far.

        Raises:
            UserError: it still does not.
        """
        try:
            self._write_all()
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise UserError(disk_trouble(error) or f"{self.path} can't be written: {error.strerror}") from error

    def close(self) -> None:
        """
        Raises:
            UserError: as `flush`; the file is closed all the same.
        """
        try:
            self.flush()
        finally:
            self._file.close()

    def _write_all(self) -> None:
        while self._unwritten:
            line = self._unwritten[0]
            # A newline first closes a line that a kill has torn, so that it can't spoil this one.
            line = b"\n" + line if self._torn else line
            end = os.fstat(self._file.fileno()).st_size
            try:
                while line:  # a disk that becomes full in a line's midst takes a part of it, and raises at the next
                    line = line[self._file.write(line) :]
            except OSError:
                os.ftruncate(self._file.fileno(), end)
                raise
            self._torn = False
            del self._unwritten[0]

    def _known(self, key: str, step: int, value: float) -> bool:
        logged = self._logged.get((key, step))
        return logged is not None and not (self._keep_changes and logged != value)


class SpoolReader:
    """Follows a spool from where its upload had got to, which is remembered in `<spool>.uploaded`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = path.with_suffix(".uploaded")
        try:
            self.offset = int(read_json(self._mark)["offset"])
        except (OSError, ValueError, KeyError, TypeError):
            self.offset = 0
        if path.exists() and self.offset > path.stat().st_size:
            self.offset = 0  # not the file that the mark was made for

    def pending(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yields (record, offset to acknowledge once it is uploaded); the record of a torn line is empty."""
        return _complete_lines(self.path, self.offset)

    def acknowledge(self, offset: int) -> None:
        self.offset = offset
        write_json(self._mark, {"offset": offset})
