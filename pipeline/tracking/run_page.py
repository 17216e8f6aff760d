"""What commands do to a run's page in MLflow after its training: upload what is left, end, rename, delete."""

import logging
from pathlib import Path
from typing import NamedTuple

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import database_file, read_json, write_json
from transloom.pipeline.run_folder import DRIVER_SPOOL, RUN_RECORD
from transloom.pipeline.secrets import redacted
from transloom.pipeline.tracking.address import TrackingConfig, recorded_uri, store_of, tracking_uri
from transloom.pipeline.tracking.mlflow_store import MlflowStore
from transloom.pipeline.tracking.spool import SPOOLS, MetricLog, SpoolReader, driver_records, last_status, last_written
from transloom.pipeline.tracking.uploader import Uploader

log = logging.getLogger(__name__)


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
