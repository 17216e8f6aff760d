"""Tracking against a real MLflow store: everything is told once, whatever happens to the run."""

import json
import time
from pathlib import Path

import pytest
from stores import CANARY, check_everything_is_there_once, points, report_everything, start, store_of

from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json
from transloom.pipeline.tasks.task import Metric
from transloom.pipeline.tasks.translation import BLEU
from transloom.pipeline.tracking import uploader
from transloom.pipeline.tracking import view as runs_view
from transloom.pipeline.tracking.address import TrackingConfig, run_url, tracking_uri, ui_command
from transloom.pipeline.tracking.run_page import end_dead_run, is_reported, sync_run
from transloom.pipeline.tracking.spool import last_end, read_points
from transloom.pipeline.tracking.tracker import SpoolTracker
from transloom.pipeline.tracking.uploader import MlflowTracker

pytestmark = pytest.mark.usefixtures("no_server_from_the_environment")


def test_everything_reaches_the_store_once_even_if_it_is_sent_again(output_dir: Path):
    tracker = start(output_dir, "everything")
    folder = tracker.run_folder
    report_everything(output_dir, tracker, folder)
    assert tracker.close(timeout=300)
    run_id = tracker.run_id()
    assert run_id == read_json(folder / "run.json")["run_id"]
    check_everything_is_there_once(output_dir, run_id)
    run = store_of(output_dir).get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("everything", "FINISHED")
    assert run.info.artifact_uri.startswith(f"file://{output_dir}/mlartifacts/")

    # As after a kill between an upload and its acknowledgement, at its worst: all is sent a second time.
    for mark in folder.glob("*.uploaded"):
        mark.unlink()
    assert sync_run(folder) == run_id
    check_everything_is_there_once(output_dir, run_id)


def test_the_list_of_runs_is_arranged_also_in_an_experiment_of_before(output_dir: Path):
    tracker = start(output_dir, "arranged", metric=BLEU)
    assert tracker.close(timeout=300)
    client = store_of(output_dir)
    experiment_id = client.get_run(tracker.run_id()).info.experiment_id
    assert client.get_experiment(experiment_id).tags[runs_view.view_tag(BLEU)] == runs_view.shared_view(BLEU)
    client.set_experiment_tag(experiment_id, runs_view.view_tag(BLEU), "{}")
    assert start(output_dir, "arranged-again", metric=BLEU).close(timeout=300)
    assert client.get_experiment(experiment_id).tags[runs_view.view_tag(BLEU)] == runs_view.shared_view(BLEU)


def test_two_tasks_in_an_experiment_have_a_list_each(output_dir: Path):
    perplexity = Metric("perplexity", "perplexity", higher_is_better=False)
    for metric in (BLEU, perplexity):
        tracker = start(output_dir, f"by-{metric.name}", metric=metric)
        assert tracker.close(timeout=300)
    tags = store_of(output_dir).get_experiment(read_json(tracker.run_folder / "run.json")["experiment_id"]).tags
    views = {metric.name: json.loads(tags[runs_view.view_tag(metric)]) for metric in (BLEU, perplexity)}
    assert {name: (view["orderByKey"], view["orderByAsc"]) for name, view in views.items()} == {
        "bleu": ("metrics.`test/bleu`", False),
        "perplexity": ("metrics.`test/perplexity`", True),
    }
    url = runs_view.runs_url("http://h:5000", "1", perplexity, None)
    assert "orderByKey=metrics.%60test%2Fperplexity%60&orderByAsc=true" in url
    assert "viewStateShareKey=transloom-bleu&" in runs_view.runs_url("http://h:5000", "1", BLEU, "transloom-bleu")


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(output_dir: Path):
    tracker = start(output_dir, "resumed")
    tracker.log_params({"batch": {"tokens": 100}, "seed": 1})
    worker = SpoolTracker(tracker.run_folder)
    for step in (1, 2, 3):
        worker.log_metrics({"train/loss": 1.0 / step}, step)
    assert tracker.close("KILLED", timeout=300)
    client = store_of(output_dir)
    run_id = tracker.run_id()
    assert client.get_run(run_id).info.status == "KILLED"

    again = start(output_dir, "resumed")
    again.log_params({"batch": {"tokens": 200}, "seed": 1})
    worker = SpoolTracker(again.run_folder)
    for step in (2, 3, 4):
        worker.log_metrics({"train/loss": 1.0 / step}, step)
    assert again.run_id(60) == run_id
    deadline = time.monotonic() + 300
    while client.get_run(run_id).info.status != "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert again.close(timeout=300)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert points(client, run_id, "train/loss") == [(step, 1.0 / step) for step in (1, 2, 3, 4)]
    assert run.data.params == {"batch.tokens": "100", "seed": "1"}
    assert {key: value for key, value in run.data.tags.items() if key.startswith("resumed.")} == {
        "resumed.batch.tokens": "200"
    }


def test_a_command_that_adds_nothing_leaves_the_duration_as_it_was(output_dir: Path, monkeypatch: pytest.MonkeyPatch):
    tracker = start(output_dir, "lasting")
    SpoolTracker(tracker.run_folder).log_metrics({"train/loss": 1.0}, 1)
    tracker.log_metrics({"test/bleu": 30.0}, 0)
    assert tracker.close(timeout=300)
    client, run_id = store_of(output_dir), tracker.run_id()
    ended = client.get_run(run_id).info.end_time

    def later(**metrics: float) -> int:
        again = start(output_dir, "lasting")
        again.log_params({"seed": 1})
        again.log_metrics({"test/bleu": 30.0} | metrics, 0)
        assert again.close(timeout=300)
        info = client.get_run(run_id).info
        assert info.status == "FINISHED"
        return info.end_time

    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 3600 * 10**9)
    assert later() == ended
    opened = (now + 3600 * 10**9) // 10**6
    assert opened <= later(**{"test_beam1-penalty0.0/bleu": 29.0}) < opened + 1_800_000


def test_a_clock_that_is_set_back_changes_neither_durations_nor_steps(
    output_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    """An hour back while the run is under way: its end stays after its start, and no system metric is lost."""
    monkeypatch.setattr(uploader, "SYSTEM_METRICS_SECONDS", 1.1)
    tracker = start(output_dir, "set-back", system_metrics=True)
    started_ms = read_json(tracker.run_folder / "run.json")["started_ms"]
    real_ns, real = time.time_ns, time.time
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() - 3600 * 10**9)
    monkeypatch.setattr(time, "time", lambda: real() - 3600)

    def steps() -> list[int]:
        return [
            point.step for point in read_points(tracker.run_folder) if point.key == "system/cpu_utilization_percentage"
        ]

    deadline = time.monotonic() + 300
    while len(steps()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    assert tracker.close(timeout=300)
    assert steps() == sorted(set(steps())) and steps()[-1] > 0
    assert started_ms < (last_end(tracker.run_folder) or 0) < started_ms + 1_800_000


def test_a_run_whose_process_is_gone_is_killed_at_its_last_metric(output_dir: Path):
    tracker = start(output_dir, "gone")
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker._closing.set()
    tracker._uploader.close(300)
    client, run_id = store_of(output_dir), tracker.run_id()
    assert client.get_run(run_id).info.status == "RUNNING"
    assert end_dead_run(tracker.run_folder)
    info = client.get_run(run_id).info
    assert info.status == "KILLED"
    assert info.end_time == client.get_metric_history(run_id, "train/loss")[0].timestamp
    assert not end_dead_run(tracker.run_folder), "it is closed now"


def test_a_run_that_the_store_has_lost_is_made_anew_with_its_whole_history(output_dir: Path):
    tracker = start(output_dir, "lost")
    tracker.log_metrics({"train/loss": 2.0}, 1)
    assert tracker.close(timeout=300)
    client = store_of(output_dir)
    client.delete_run(tracker.run_id())

    again = start(output_dir, "lost")
    again.log_metrics({"train/loss": 1.0}, 2)
    assert again.close(timeout=300)
    assert again.run_id() != tracker.run_id()
    assert points(client, again.run_id(), "train/loss") == [(1, 2.0), (2, 1.0)]


def test_what_the_store_refuses_does_not_hold_up_the_rest(output_dir: Path, caplog: pytest.LogCaptureFixture):
    tracker = start(output_dir, "refused")
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.log_metrics({"a name with <signs> that MLflow does not allow": 1.0}, 1)
    tracker.log_metrics({"train/loss": 0.5}, 2)
    tracker.log_artifact(tracker.run_folder / "absent.txt")
    tracker.log_params({"after": "all"})
    assert tracker.close(timeout=300)
    client = store_of(output_dir)
    assert points(client, tracker.run_id(), "train/loss") == [(1, 1.0), (2, 0.5)]
    assert client.get_run(tracker.run_id()).data.params == {"after": "all"}
    assert "absent.txt" in caplog.text


def test_a_run_counts_as_reported_only_when_nothing_is_left_to_tell(output_dir: Path):
    config, folder = TrackingConfig(), output_dir / "runs" / "told"
    assert not is_reported(config, output_dir, folder)
    tracker = start(output_dir, "told")
    tracker.log_metrics({"train/loss": 1.0}, 1)
    assert not is_reported(config, output_dir, folder), "it still runs"
    assert tracker.close("FINISHED", timeout=300)
    assert is_reported(config, output_dir, folder)
    assert not is_reported(TrackingConfig(uri="http://127.0.0.1:9"), output_dir, folder), "told to another store"
    SpoolTracker(folder).log_metrics({"train/loss": 0.5}, 2)
    assert not is_reported(config, output_dir, folder), "a point is not uploaded"
    sync_run(folder)
    assert is_reported(config, output_dir, folder)
    assert start(output_dir, "told").close("FAILED", timeout=300)
    assert not is_reported(config, output_dir, folder), "it ended otherwise"


def test_system_metrics_are_logged(output_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(uploader, "SYSTEM_METRICS_SECONDS", 0.2)
    folder = output_dir / "runs" / "system"
    tracker = MlflowTracker(TrackingConfig(), output_dir, folder, "system", {})
    deadline = time.monotonic() + 300
    while "system/cpu_utilization_percentage" not in (folder / "driver.jsonl").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert tracker.close(timeout=300)
    run = store_of(output_dir).get_run(tracker.run_id())
    assert 0 <= run.data.metrics["system/cpu_utilization_percentage"] <= 100
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0


def test_nothing_is_uploaded_before_training_has_begun(output_dir: Path):
    folder = output_dir / "runs" / "early"
    folder.mkdir(parents=True)
    SpoolTracker(folder).log_metrics({"train/loss": 3.0}, 1)  # of an attempt before
    tracker = MlflowTracker(TrackingConfig(), output_dir, folder, "early", {}, after_training_began=True)
    assert tracker.run_id(timeout=3.0) is None
    SpoolTracker(folder).log_metrics({"train/loss": 2.0}, 2)
    run_id = tracker.run_id(timeout=60.0)
    assert run_id is not None
    assert tracker.close(timeout=60)
    assert points(store_of(output_dir), run_id, "train/loss") == [(1, 3.0), (2, 2.0)]

    # An end before any beginning is uploaded, too.
    tracker = MlflowTracker(TrackingConfig(), output_dir, folder, "early", {}, after_training_began=True)
    assert tracker.close("KILLED", timeout=60)
    assert store_of(output_dir).get_run(run_id).info.status == "KILLED"


def test_the_address_is_the_configurations_or_the_environments_or_a_local_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert tracking_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://a:5000")
    assert tracking_uri(TrackingConfig(), tmp_path) == "http://a:5000"
    assert tracking_uri(TrackingConfig(uri="http://b:5000"), tmp_path) == "http://b:5000"


def test_a_wrong_configuration_is_refused_without_its_password():
    with pytest.raises(ValueError, match="experiment"):
        TrackingConfig(experiment=" ")
    with pytest.raises(ValueError, match="uri: 'localhost/x' is no address"):
        TrackingConfig(uri="localhost/x")


def test_tracking_can_be_switched_off_and_points_are_still_kept(tmp_path: Path):
    tracker = start(tmp_path, "off", enabled=False)
    tracker.log_metrics({"test/bleu": 1.0}, 1)
    assert tracker.close()
    assert "test/bleu" in (tracker.run_folder / "driver.jsonl").read_text()
    assert not (tmp_path / "mlflow.db").exists()


def test_the_pages_have_no_assistant_that_runs_commands():
    from mlflow.server.assistant.api import assistant_router
    from mlflow.server.fastapi_app import create_fastapi_app
    from starlette.testclient import TestClient

    from transloom.pipeline.tracking.pages import app

    paths = sorted({route.path for route in assistant_router.routes})  # type: ignore[attr-defined]
    plain = [path for path in paths if "{" not in path]
    assert plain, "MLflow's assistant has moved"
    as_it_comes, ours = (
        TestClient(one, "http://127.0.0.1", client=("127.0.0.1", 50000)) for one in (create_fastapi_app(), app)
    )
    assert any(as_it_comes.get(path).status_code != 404 for path in plain), "there is nothing to be left out any more"
    for path in paths:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            assert ours.request(method, path).status_code in (404, 405), (method, path)


def test_the_ui_command_is_on_loopback_and_shows_no_password(tmp_path: Path):
    command, environment = ui_command(f"postgresql://user:{CANARY}@host/db", tmp_path, port=5001)
    assert CANARY not in " ".join(command)
    assert "--host 127.0.0.1 --port 5001" in " ".join(command)
    assert "--app-name transloom" in " ".join(command)
    assert environment["MLFLOW_BACKEND_STORE_URI"].endswith("@host/db")
    assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    with pytest.raises(UserError, match="a UI of its own") as error:
        ui_command(f"http://user:{CANARY}@host:5000", tmp_path)
    assert CANARY not in str(error.value)
    assert run_url("http://host:5000/", "1", "abc").startswith("http://host:5000/#/experiments/1/runs/abc")
