"""Reporting a run to MLflow: the driver's tracker, and the thread that uploads what the spools hold."""

import dataclasses
import getpass
import logging
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import database_file, database_uri, read_json, write_json
from transloom.pipeline.run_folder import DRIVER_SPOOL, RUN_RECORD, TRAINING_SPOOL
from transloom.pipeline.search_path import ROOT, search_environment
from transloom.pipeline.secrets import HIDDEN, redacted
from transloom.pipeline.tasks.task import Metric
from transloom.pipeline.tracking.mlflow_store import (
    MAX_METRICS_PER_BATCH,
    MLFLOW_ENVIRONMENT,
    MlflowStore,
    ask_server,
    system_monitors,
)
from transloom.pipeline.tracking.relocate import ARTIFACTS, path_of, settle_store
from transloom.pipeline.tracking.spool import (
    SPOOLS,
    MetricLog,
    SpoolReader,
    driver_records,
    last_end,
    last_status,
    last_written,
)
from transloom.pipeline.tracking.tracker import SpoolTracker

STORES = r"(https?|file|databricks|(sqlite|postgresql|mysql|mssql)(\+\w+)?):"
POLL_SECONDS = 1.0
START_SECONDS = 30.0  # for the workers of a training to come up
MAX_BACKOFF_SECONDS = 30.0
SYSTEM_METRICS_SECONDS = 10.0
ANSWER_SECONDS = 10.0
FAILING_SECONDS = 1.0  # that a command waits at its end for a store which fails

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackingConfig:
    """Where the run is reported.

    Passwords belong into the environment (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or
    MLFLOW_TRACKING_TOKEN).

    Attributes:
        enabled: whether runs are reported to MLflow.
        uri: the address of MLflow's server or database; None: the environment's MLFLOW_TRACKING_URI, else a SQLite
            store in the output folder.
        experiment: MLflow's experiment, which has the runs.
        system_metrics: whether the use of CPU, memory, disk, network and GPU is reported, too.

    Raises:
        ValueError: naming the field.
    """

    enabled: bool = True
    uri: str | None = None
    experiment: str = "transloom"
    system_metrics: bool = True

    def __post_init__(self) -> None:
        if not self.experiment.strip():
            raise ValueError("experiment: must not be empty")
        if self.uri is not None and not re.match(STORES, self.uri):
            raise ValueError(
                f"uri: {redacted(self.uri)!r} is no address; give http(s)://host:port, sqlite:////folder/mlflow.db "
                "or another database, or null for a store in output_dir"
            )


def tracking_uri(config: TrackingConfig, output_dir: Path) -> str:
    """The absolute URI of the store. It may hold a password: print it through `redacted` only."""
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or local_store(output_dir)


def local_store(output_dir: Path) -> str:
    """The URI of the store in an output folder."""
    return database_uri(output_dir / "mlflow.db")


def refuse_unreachable(config: TrackingConfig, output_dir: Path) -> None:
    """Where the store is a server: whether it answers. (A training would go on without it, and its curves come late.)

    Raises:
        UserError: it does not, or not to this user.
    """
    uri = tracking_uri(config, output_dir)
    if not uri.startswith("http"):
        return
    server = redacted(uri)
    try:
        code, text = ask_server(uri, ANSWER_SECONDS)
    except Exception:  # MLflow's own; its text may hold the password
        raise UserError(
            f"tracking.uri: no MLflow answers at {server} from {socket.gethostname()}: start it, give the address of "
            "one that runs, or train without: tracking=off"
        ) from None
    if code == 401 or (code == 403 and "host" not in text.lower()):
        raise UserError(
            f"tracking.uri: MLflow at {server} asks for another login ({code}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD in the environment that Ray is started in"
        )
    if code != 200:
        hint = "; MLFLOW_SERVER_ALLOWED_HOSTS there must name this address" if code == 403 else ""
        raise UserError(f"tracking.uri: {server} answers {code} ({redacted(text.strip()[:200])}): is it MLflow?{hint}")


def artifact_location(uri: str, output_dir: Path) -> str | None:
    """Where a new experiment's artifacts go: beside a database; a server has its own place (None)."""
    return None if uri.startswith("http") else (output_dir.absolute() / ARTIFACTS).as_uri()


def recorded_uri(run_folder: Path, record: Mapping[str, Any]) -> str:
    """The URI, without its secrets, of the store that a run reports to; a store in the output folder moves with it."""
    uri, location = record["tracking_uri"], record.get("artifact_location")
    if location and uri == local_store(path_of(location).parent):
        return local_store(run_folder.absolute().parent.parent)
    return uri


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
        log.warning("not everything is uploaded to MLflow yet; what is missing is kept in %s", self.run_folder)
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


def is_reported(config: TrackingConfig, output_dir: Path, run_folder: Path) -> bool:
    """Whether a run was reported to its end and all of it is uploaded, as far as can be told without the store."""
    record_file = run_folder / RUN_RECORD
    if not record_file.exists() or last_status(run_folder) != "FINISHED":
        return False
    return is_uploaded(run_folder, tracking_uri(config, output_dir))


def is_uploaded(run_folder: Path, uri: str) -> bool:
    """Whether all that a run has reported so far is in the store at `uri`, as far as can be told without the store."""
    record = read_json(run_folder / RUN_RECORD)
    if record["run_id"] is None or recorded_uri(run_folder, record) != redacted(uri):
        return False
    if (database := database_file(uri)) and not database.exists():
        return False
    return not any(any(True for _ in SpoolReader(run_folder / name).pending()) for name in SPOOLS)


def end_dead_run(run_folder: Path, uri: str | None = None) -> bool:
    """Records that a run whose process is gone was KILLED, at the time of its last metric, and uploads that. For
    whoever holds the run's lock. False where the run was closed, or the store does not know it.

    Args:
        uri: of the store that this command reports to; with the same store's password, where it has one.
    """
    if not (run_folder / RUN_RECORD).exists() or not record_death(run_folder):
        return False
    record = read_json(run_folder / RUN_RECORD)
    if record["run_id"] is None:
        return False
    stored = recorded_uri(run_folder, record)
    try:
        sync_run(run_folder, uri if uri and redacted(uri) == stored else None)
    except UserError as error:
        log.warning("%s", error)
    return True


def record_death(run_folder: Path) -> bool:
    """Records that a run whose process is gone was KILLED, at the time of its last metric; False where it was closed.
    For whoever holds the run's lock."""
    if last_status(run_folder) not in (None, "RUNNING"):
        return False
    spool = MetricLog(run_folder / DRIVER_SPOOL, keep_changes=True)
    ended_ms = last_written(run_folder) or read_json(run_folder / RUN_RECORD)["started_ms"]
    spool.write({"do": "status", "status": "KILLED", "time_ms": ended_ms})
    spool.close()
    return True


def store_of(run_folder: Path, uri: str | None = None) -> str:
    """The URI of the store that a run reports to: `uri`, else the run's own, with the password that it has in
    MLFLOW_TRACKING_URI. It may hold a password.

    Raises:
        UserError: the folder is no run's, or the password is not known.
    """
    record_file = run_folder / RUN_RECORD
    if not record_file.exists():
        raise UserError(f"{run_folder} holds no {RUN_RECORD}: give the folder of a run, such as outputs/runs/<name>")
    stored, known = recorded_uri(run_folder, read_json(record_file)), os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None and HIDDEN in stored and known and redacted(known) == stored:
        return known
    if uri is None and HIDDEN in stored:
        raise UserError(f"the password for {stored} is not kept with the run: give tracking.uri again")
    return uri or stored


class Uploaded(NamedTuple):
    """What an upload brought: the MLflow run's id; points of metrics; texts, files, tables and models."""

    run_id: str
    points: int
    files: int


def upload_run(run_folder: Path, uri: str | None = None) -> Uploaded:
    """Uploads what is left of a run. `uri` is needed where the run's held a password.

    Raises:
        UserError: if the folder is no run's, the URI is missing, or the store can't be reached.
    """
    uri = store_of(run_folder, uri)
    uploader = Uploader(run_folder.absolute(), uri)
    try:
        uploader.upload()
    except Exception as error:
        raise UserError(
            f"uploading {run_folder} to {redacted(uri)} failed: {redacted(str(error))}. "
            "Nothing is lost: check that the server is up, and try again"
        ) from None
    return Uploaded(read_json(run_folder / RUN_RECORD)["run_id"], uploader.points, uploader.files)


def sync_run(run_folder: Path, uri: str | None = None) -> str:
    """Uploads what is left of a run and returns its MLflow id; see `upload_run`."""
    return upload_run(run_folder, uri).run_id


def add_parent(run_folder: Path, parent_id: str) -> None:
    """Ties a trial to its sweep's run in MLflow, where that was not known while the trial ran. For whoever holds the
    run's lock."""
    if not any("mlflow.parentRunId" in record.get("tags", {}) for record in driver_records(run_folder)):
        spool = MetricLog(run_folder / DRIVER_SPOOL, keep_changes=True)
        spool.write({"do": "tags", "tags": {"mlflow.parentRunId": parent_id}})
        spool.close()


def record_name(run_folder: Path, name: str) -> None:
    """Records a run's new name, which the next upload brings to MLflow. For whoever holds the run's lock."""
    file = run_folder / RUN_RECORD
    write_json(file, read_json(file) | {"run_name": name})
    spool = MetricLog(run_folder / DRIVER_SPOOL, keep_changes=True)
    spool.write({"do": "tags", "tags": {"mlflow.runName": name}})
    spool.close()


def set_deleted(run_folder: Path, deleted: bool, uri: str | None = None) -> bool:
    """Marks a run as deleted in MLflow, or takes the mark off; returns whether that changed anything there.

    Args:
        uri: as of `upload_run`.
    Raises:
        UserError: the store can't be reached.
    """
    record = read_json(run_folder / RUN_RECORD)
    uri = store_of(run_folder, uri)
    if record["run_id"] is None or ((database := database_file(uri)) and not database.exists()):
        return False
    try:
        return MlflowStore(uri, record).set_deleted(deleted)
    except Exception as error:
        raise UserError(
            f"tracking.uri: MLflow at {redacted(uri)} does not answer ({redacted(str(error))[:200]}); try again later, "
            "or leave MLflow as it is with tracking=off"
        ) from None


def run_url(server: str, experiment_id: str, run_id: str) -> str:
    """The run's page in the UI that `server` (http://host:port) serves."""
    # The UI has two faces; the parameter asks for the one that shows training.
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def ui_command(
    uri: str, artifacts: Path, host: str = "127.0.0.1", port: int = 5000
) -> tuple[list[str], dict[str, str]]:
    """The command line that serves a store's UI, and what to add to its environment. (The store's address is in the
    environment: every user of a machine can read command lines, and a database's address may hold a password.)

    Raises:
        UserError: if the store is a server, which has its own UI.
    """
    if uri.startswith("http"):
        raise UserError(f"tracking.uri is a server with a UI of its own: open {redacted(uri)} in a browser")
    options = ["--artifacts-destination", artifacts.absolute().as_uri(), "--host", host, "--port", str(port)]
    # No background jobs: they are for language model applications, and cost processes and seconds.
    environment = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "transloom", "--workers", "1", *options]
    # The server imports pipeline.tracking.pages, and looks in UVICORN_APP_DIR first, by default in the current folder.
    return command, MLFLOW_ENVIRONMENT | environment | search_environment() | {"UVICORN_APP_DIR": ROOT}
