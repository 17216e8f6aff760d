"""Reporting a run to MLflow: the driver's tracker, and the thread that uploads what the spools hold."""

import dataclasses
import getpass
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json, write_json
from transloom.pipeline.run_folder import DRIVER_SPOOL, RUN_RECORD, TRAINING_SPOOL
from transloom.pipeline.secrets import redacted
from transloom.pipeline.tasks.task import Metric
from transloom.pipeline.tracking.address import TrackingConfig, artifact_location, local_store, tracking_uri
from transloom.pipeline.tracking.mlflow_store import MAX_METRICS_PER_BATCH, MlflowStore, system_monitors
from transloom.pipeline.tracking.relocate import settle_store
from transloom.pipeline.tracking.spool import SPOOLS, SpoolReader, last_end, last_written
from transloom.pipeline.tracking.tracker import SpoolTracker

POLL_SECONDS = 1.0
START_SECONDS = 30.0  # for the workers of a training to come up
MAX_BACKOFF_SECONDS = 30.0
SYSTEM_METRICS_SECONDS = 10.0
FAILING_SECONDS = 1.0  # that a command waits at its end for a store which fails

log = logging.getLogger(__name__)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        return "unknown"


class MlflowTracker(SpoolTracker):
    """The driver's tracker: owns the run's record `run.json`, the uploading thread and the system metrics.

    Making one on a run folder that has a `run.json` goes on with that MLflow run. Nothing here waits for the store:
    where it is away, the run is made there later, by this process or by `sync_run`.

    Args:
        after_training_began: nothing is uploaded before rank 0 has reported for the first time, or half a minute is
            over. MLflow takes seconds of CPU time to import, which the workers need to start.
        metric: that runs like this one are chosen by; MLflow's list is arranged by it. None: left as it is.
    """

    def __init__(
        self,
        config: TrackingConfig,
        output_dir: Path,
        run_folder: Path,
        run_name: str,
        tags: Mapping[str, str],
        after_training_began: bool = False,
        metric: Metric | None = None,
    ) -> None:
        super().__init__(run_folder, DRIVER_SPOOL)
        uri = tracking_uri(config, output_dir)
        record_file = self.run_folder / RUN_RECORD
        self._end_before = last_end(self.run_folder) or last_written(self.run_folder)
        self._size_before = _size(self.run_folder / TRAINING_SPOOL)
        if record_file.exists():
            self._spool.write({"do": "status", "status": "RUNNING"})
        else:
            record = {
                "run_id": None,
                "key": uuid.uuid4().hex,
                "run_name": run_name,
                "experiment": config.experiment,
                "tags": {"mlflow.user": _user(), "mlflow.source.name": "transloom"} | dict(tags),
                "started_ms": time.time_ns() // 1_000_000,
                "tracking_uri": redacted(uri),
                "artifact_location": artifact_location(uri, output_dir),
                **({"selects": dataclasses.asdict(metric)} if metric else {}),
            }
            write_json(record_file, record)
        self._opened_ms, self._opened_at = time.time_ns() // 1_000_000, time.monotonic()
        # Seconds from the run's start to now; a clock that was set back must not lead to steps that were logged before.
        elapsed = (self._opened_ms - read_json(record_file)["started_ms"]) / 1000
        self._seconds_before = max(elapsed, self._spool.last_step("system/") + 1.0)
        self._closing = threading.Event()
        self._uploader = Uploader(self.run_folder, uri) if config.enabled else None
        if self._uploader:
            self._uploader.start(self.run_folder / TRAINING_SPOOL if after_training_began else None)
        self._monitor = threading.Thread(target=self._watch_system, name="system-metrics", daemon=True)
        if config.enabled and config.system_metrics:
            self._monitor.start()

    def run_id(self, timeout: float = 0.0) -> str | None:
        """The MLflow run's id; None where there is none yet after `timeout` seconds."""
        return self._uploader.wait_for_run(timeout) if self._uploader else None

    def close(self, status: str = "FINISHED", timeout: float = 30.0) -> bool:
        """Records the end (FINISHED, FAILED or KILLED) and waits up to `timeout` seconds for the upload. A run that no
        metric was added to ended when it did before, so that its duration stays.

        Returns whether everything is uploaded. If not, it is kept, and `sync_run` does the rest later.

        Raises:
            UserError: the run FINISHED, and the disk does not take what it reported last.
        """
        self._closing.set()
        if self._monitor.is_alive():
            self._monitor.join(1.0)
        has_grown = self.has_added or _size(self.run_folder / TRAINING_SPOOL) > self._size_before
        now_ms = self._opened_ms + round(1000 * (time.monotonic() - self._opened_at))  # the clock may have been set
        ended_ms = now_ms if has_grown or self._end_before is None else self._end_before
        self._spool.write({"do": "status", "status": status, "time_ms": ended_ms})
        trouble = None
        try:
            super().close(status)
        except UserError as error:
            trouble = error
            if status != "FINISHED":  # what ended the run is told, not this
                log.warning("%s", error)
        is_uploaded = self._uploader is None or self._uploader.close(timeout)
        if trouble and status == "FINISHED":
            raise trouble
        if is_uploaded:
            return True
        log.warning(
            "not everything is uploaded to MLflow yet; what is missing is kept in %s. Later: transloom sync %s",
            *(self.run_folder, self.run_folder.name),
        )
        return False

    def _watch_system(self) -> None:
        """Logs how busy the driver's node is, by seconds since the run's start."""
        try:
            while self._uploader and not self._uploader.begun.wait(0.1):
                if self._closing.is_set():
                    return
            monitors = system_monitors()
            while not self._closing.wait(SYSTEM_METRICS_SECONDS):
                metrics: dict[str, float] = {}
                for monitor in monitors:
                    monitor.collect_metrics()
                    metrics |= {f"system/{key}": value for key, value in monitor.aggregate_metrics().items()}
                    monitor.clear_metrics()
                self._spool.append(metrics, step=round(self._seconds_before + time.monotonic() - self._opened_at))
        except Exception as error:
            log.warning("system metrics stopped: %s", redacted(str(error)))


class Uploader:
    """Brings the spools of a run folder into the MLflow store, in a thread (`start`) or at once (`upload`).

    After a failure or a kill it begins again at the last acknowledged line; since what the store does can be repeated
    without a trace, nothing is lost or doubled.
    """

    def __init__(self, run_folder: Path, uri: str) -> None:
        self._folder = run_folder
        self._uri = uri
        self._output_dir = run_folder.parent.parent
        self._record = read_json(run_folder / RUN_RECORD)
        if uri == local_store(self._output_dir):
            settle_store(self._output_dir, self._record["run_id"])
        self._store = MlflowStore(uri, self._record | {"artifact_location": artifact_location(uri, self._output_dir)})
        self._readers = [SpoolReader(run_folder / name) for name in SPOOLS]
        self._after: tuple[Path, int] | None = None
        self._is_failing = False
        self.points = self.files = 0  # that have been uploaded
        self.begun = threading.Event()  # once the thread has nothing to wait for any more
        self._run_found = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mlflow-upload", daemon=True)

    def start(self, after: Path | None = None) -> None:
        """Starts the thread, which first waits until somebody writes into the file `after`, but not for long."""
        self._after = (after, _size(after)) if after else None
        self._thread.start()

    def wait_for_run(self, timeout: float) -> str | None:
        self._run_found.wait(timeout)
        return self._store.run_id or None

    def close(self, timeout: float) -> bool:
        """Asks the thread to upload what is left and to end; False if it has not by then. A store that failed is tried
        once more, and not waited for where it fails again."""
        self._is_failing = False
        self._closing.set()
        deadline = time.monotonic() + timeout
        while self._thread.is_alive() and time.monotonic() < deadline:
            if self._is_failing:
                deadline = min(deadline, time.monotonic() + FAILING_SECONDS)
            self._thread.join(0.05)
        return not self._thread.is_alive()

    def upload(self) -> None:
        """Uploads what has been written so far.

        Raises:
            Exception: whatever the store or the network answers; calling again goes on where this stopped.
        """
        if not self._run_found.is_set():
            if self._store.find_run():
                for reader in self._readers:
                    reader.acknowledge(0)
                self._record |= {"run_id": self._store.run_id, "experiment_id": self._store.experiment_id}
                write_json(self._folder / RUN_RECORD, self._record)
            self._run_found.set()
        for reader in self._readers:
            self._upload_spool(reader)

    def _follow(self) -> None:
        if self._after:
            file, size = self._after
            deadline = time.monotonic() + START_SECONDS
            while _size(file) == size and time.monotonic() < deadline and not self._closing.wait(POLL_SECONDS):
                pass
        self.begun.set()
        failures = 0
        while True:
            closing = self._closing.is_set()
            try:
                self.upload()
            except Exception as error:
                self._is_failing = True
                self._run_found.clear()  # looked for again, for the store may have been replaced meanwhile
                if failures == 0:
                    what, where = redacted(str(error)), redacted(self._uri)
                    log.warning("MLflow at %s: %s. It is tried again until it works; nothing is lost", where, what)
                failures += 1
                if closing:
                    time.sleep(POLL_SECONDS)
                else:
                    self._closing.wait(min(MAX_BACKOFF_SECONDS, 2.0 ** min(failures, 10)))
                continue
            if failures:
                log.warning("MLflow works again; what had been kept is uploaded")
            failures, self._is_failing = 0, False
            if closing:
                return
            self._closing.wait(POLL_SECONDS)

    def _upload_spool(self, reader: SpoolReader) -> None:
        points: list[dict[str, Any]] = []
        size = 0
        end = reader.offset
        for record, offset in reader.pending():
            metrics = record.get("metrics", {})
            # What stands before is sent first: the order of the spool is kept.
            if points and (not metrics or size + len(metrics) > MAX_METRICS_PER_BATCH):
                self._send_points(points)
                reader.acknowledge(end)
                points, size = [], 0
            if metrics:
                points.append(record)
                size += len(metrics)
            elif record:
                is_done = self._send(lambda record=record: self._store.do(record, self._folder))
                self.files += is_done and record.get("do") in ("text", "artifact", "table", "model")
                reader.acknowledge(offset)
            end = offset
        if end != reader.offset:
            self._send_points(points)
            reader.acknowledge(end)

    def _send_points(self, records: list[dict[str, Any]]) -> None:
        if records and self._send(lambda: self._store.log_points(records)):
            self.points += sum(len(record["metrics"]) for record in records)
        elif len(records) > 1:
            for record in records:  # one of them is refused: the others are not to suffer for it
                if self._send(lambda record=record: self._store.log_points([record])):
                    self.points += len(record["metrics"])

    def _send(self, action: Callable[[], None]) -> bool:
        """False, with a warning, where the store refuses the record for good; other failures are raised."""
        try:
            action()
        except Exception as error:
            if not self._store.refuses(error):
                raise
            log.warning("MLflow refuses a record of %s: %s", self._folder.name, redacted(str(error)))
            return False
        return True


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
