"""What a training worker knows when it goes on."""

from pathlib import Path

from jobs.worker import logged_seconds
from pipeline.tracker import SpoolTracker


def test_the_time_trained_so_far_survives_a_kill(tmp_path: Path) -> None:
    assert logged_seconds(tmp_path) == 0.0
    tracker = SpoolTracker(tmp_path)
    for step in (20, 40, 60):  # the last checkpoint may be that of step 20
        tracker.log_metrics({"train/seconds": step / 4, "train/loss": 99.0}, step)
    tracker.close()
    assert logged_seconds(tmp_path) == 15.0
