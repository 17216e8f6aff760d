"""An output folder that was moved or copied: files of its runs are where the folder is now, and new ones go there."""

import os
import shutil
from pathlib import Path

import pytest
from stores import start, store_of

from transloom.pipeline.files import read_json
from transloom.pipeline.tracking.address import TrackingConfig
from transloom.pipeline.tracking.relocate import settle_store
from transloom.pipeline.tracking.run_page import is_reported, sync_run
from transloom.pipeline.tracking.tracker import SpoolTracker

pytestmark = pytest.mark.usefixtures("no_server_from_the_environment")


def report(output_dir: Path, name: str) -> str:
    """Reports a run with a file and a model; its id in MLflow."""
    tracker = start(output_dir, name)
    (tracker.run_folder / "model").mkdir(exist_ok=True)
    (tracker.run_folder / "model" / "weights").write_bytes(b"weights")
    tracker.log_metrics({"train/loss": 2.0}, 1)
    tracker.log_text("a: 1\n", "config.yaml")
    tracker.log_model(f"model-of-{name}", 1, folder=tracker.run_folder / "model")
    assert tracker.close(timeout=300)
    return read_json(tracker.run_folder / "run.json")["run_id"]


def artifacts(output_dir: Path) -> set[str]:
    return {str(path.relative_to(output_dir)) for path in (output_dir / "mlartifacts").rglob("*") if path.is_file()}


def test_a_copy_has_files_of_its_own(output_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    old_run = report(output_dir, "stayed")
    assert "was moved" not in caplog.text
    before = artifacts(output_dir)
    new = tmp_path / "a copy_%"
    shutil.copytree(output_dir, new)
    assert is_reported(TrackingConfig(), new, new / "runs" / "stayed")

    fresh = report(new, "fresh")
    assert caplog.text.count(f"{new} was moved or copied from {output_dir}.") == 1
    store = store_of(new)
    for run_id in (old_run, fresh):
        assert store.get_run(run_id).info.artifact_uri == (new / "mlartifacts" / run_id / "artifacts").as_uri()
        assert Path(store.download_artifacts(run_id, "config.yaml")).read_text() == "a: 1\n"
    (experiment,) = {store.get_run(run_id).info.experiment_id for run_id in (old_run, fresh)}
    for name in ("stayed", "fresh"):
        (model,) = store.search_logged_models([experiment], f"name = 'model-of-{name}'")
        assert "weights" in {file.path for file in store.list_logged_model_artifacts(model.model_id)}
    caplog.clear()
    SpoolTracker(new / "runs" / "stayed").log_metrics({"train/loss": 3.0}, 2)
    assert sync_run(new / "runs" / "stayed") == old_run
    assert "was moved" not in caplog.text
    assert len(store.get_metric_history(old_run, "train/loss")) == 2

    # What was copied from has changed in nothing.
    assert artifacts(output_dir) == before
    original = store_of(output_dir)
    assert len(original.get_metric_history(old_run, "train/loss")) == 1
    assert original.get_run(old_run).info.artifact_uri.startswith(f"file://{output_dir}/mlartifacts/")


def test_a_folder_that_another_sees_elsewhere_stays_as_it_is_while_a_run_reports_to_it(
    output_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    here, linked, moved = tmp_path / "here", tmp_path / "link", tmp_path / "moved"
    shutil.copytree(output_dir, here)
    run_id = report(here, "under-way")
    store_of(here).update_run(run_id, status="RUNNING")
    caplog.clear()
    linked.symlink_to(here)
    settle_store(linked)
    assert not caplog.text  # another name of the same folder

    os.rename(here, moved)
    settle_store(moved)
    assert f"is {here} elsewhere, where the run under-way reports to MLflow now" in caplog.text
    assert store_of(moved).get_run(run_id).info.artifact_uri.startswith(f"file://{here}/")
    caplog.clear()
    settle_store(moved, own=run_id)  # it is that run which goes on
    assert f"{moved} was moved or copied from {here}." in caplog.text
    assert Path(store_of(moved).download_artifacts(run_id, "config.yaml")).read_text() == "a: 1\n"
    caplog.clear()
    settle_store(moved)
    assert not caplog.text


def test_a_store_that_can_not_be_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    settle_store(tmp_path)
    (tmp_path / "mlflow.db").touch()
    settle_store(tmp_path)
    assert not caplog.text
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    settle_store(tmp_path)
    assert "whether it was moved is not known (file is not a database)" in caplog.text
