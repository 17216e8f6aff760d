"""What a training worker knows when it goes on."""

import sys
from contextlib import suppress
from pathlib import Path

import pytest

from transloom.jobs.config.schema import ClusterConfig, Config
from transloom.jobs.ray_cluster.session import ray_session
from transloom.jobs.terminal.console import StatusLine
from transloom.jobs.training import worker
from transloom.jobs.training.heartbeat import Heartbeat
from transloom.jobs.training.worker import logged_seconds
from transloom.pipeline.tracking.spool import read_points
from transloom.pipeline.tracking.tracker import SpoolTracker

SETTINGS = {"attempt": "attempt", "spare_cpus": 0, "hang_seconds": 0.0}


def test_the_time_trained_so_far_survives_a_kill(tmp_path: Path) -> None:
    assert logged_seconds(tmp_path) == 0.0
    tracker = SpoolTracker(tmp_path)
    for step in (20, 40, 60):  # the last checkpoint may be that of step 20
        tracker.log_metrics({"train/seconds": step / 4, "train/loss": 99.0}, step)
    tracker.close()
    assert logged_seconds(tmp_path) == 15.0


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device", "/disk/x"), RuntimeError("disk quota exceeded")]
)
def test_a_disk_that_can_not_be_written_is_returned_and_not_retried(tmp_path: Path, monkeypatch, error) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker, "_train", fail)
    outcome = worker.train_worker(SETTINGS | {"folder": str(tmp_path)})
    assert str(getattr(error, "filename", None) or tmp_path) in outcome["user_error"]
    error = ValueError("a bug")
    with pytest.raises(ValueError):
        worker.train_worker(SETTINGS | {"folder": str(tmp_path)})


def test_a_progress_file_that_can_not_be_written_does_not_end_the_training(tmp_path: Path) -> None:
    (tmp_path / "progress.json").mkdir()  # nothing can be renamed over a folder
    reports = worker._reports(Config(), tmp_path, Heartbeat(tmp_path, 0, limit=0.0), is_first=True)
    reports.progress({"step": 1})
    reports.metrics({"train/loss": 1.0}, 1)
    reports.flush()
    assert [point.step for point in read_points(tmp_path)] == [1]


def test_a_line_of_progress_that_a_full_disk_does_not_take_is_left_out(monkeypatch) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115 (closing it fails)
    monkeypatch.setattr(sys, "stdout", full)
    StatusLine().show("  step 1/2", now=True)
    monkeypatch.undo()
    with suppress(OSError):
        full.close()


@pytest.mark.parametrize(("spare", "where"), [(10_000, "worker"), (1, "task")])
def test_a_validation_whose_cpu_is_lost_is_the_workers_own(tmp_path: Path, monkeypatch, spare: int, where: str) -> None:
    """The node with the free CPUs may die while the workers train, or may be counted after its death."""
    monkeypatch.setattr(worker, "validate_snapshot", lambda folder, snapshot, config, device: device or "task")
    monkeypatch.setattr(worker, "SECONDS_BETWEEN_LOOKS", 0.2)
    heartbeat = Heartbeat(tmp_path, 0, limit=0.0)
    with ray_session(ClusterConfig(num_workers=2)):  # two CPUs at least
        begin = worker._validation(Config(), tmp_path, "worker", spare, heartbeat)
        assert begin(20, tmp_path)() == where
