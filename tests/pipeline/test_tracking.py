"""Tracking against real MLflow stores, that are down, slow, failing, killed half-way or have forgotten the run."""

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.spool import read_points
from pipeline.tracker import SpoolTracker
from pipeline.tracking import MlflowTracker, TrackingConfig, is_reported, run_url, sync_run, ui_command

CANARY = "c4n4ry-p4ssw0rd"
DATASET = ("phrasebook validation", "b" * 64)


@pytest.fixture(autouse=True)
def _no_server_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests, for it takes seconds to make."""
    return tmp_path_factory.mktemp("outputs")


def store_of(output_dir: Path):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{output_dir}/mlflow.db")


def start(output_dir: Path, name: str, uri: str | None = None, **settings) -> MlflowTracker:
    config = TrackingConfig(uri=uri, system_metrics=False, **settings)
    return MlflowTracker(config, output_dir, output_dir / "runs" / name, name, {"corpus": "phrasebook"})


def points(client, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, key))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def report_everything(output_dir: Path, tracker: MlflowTracker, folder: Path) -> None:
    worker = SpoolTracker(folder)
    for step in range(1, 31):
        worker.log_metrics({"train/loss": 10 / step, "train/learning_rate": step * 1e-4}, step)
        if step % 10 == 0:
            worker.log_metrics({"validation/bleu": float(step)}, step, model=f"step-{step}", dataset=DATASET)
            worker.log_model(f"step-{step}", step, params={"weights": f"weights/{step}"})
            worker.log_table({"step": [step], "translation": ["ein Hund"]}, "samples")
    worker.log_metrics({"train/grad_norm": math.nan}, 30)
    worker.close()
    tracker.log_params({"model": {"d_model": 8}, "many": {f"p{i}": i for i in range(150)}})
    tracker.set_tags({"colour": "blue"})
    tracker.log_text("a: 1\n", "config.yaml")
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / "curves.png").write_bytes(b"PNG")
    tracker.log_figure(folder / "figures" / "curves.png")
    tracker.log_dataset(*DATASET, str(output_dir / "corpora"), {"pairs": 500}, "validation")
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    tracker.log_model("averaged", 30, folder=folder / "model", params={"average_of": "20, 30"})
    tracker.log_metrics({"test/bleu": 31.5}, 30, model="averaged")


def check_everything_is_there_once(output_dir: Path, run_id: str) -> None:
    client = store_of(output_dir)
    run = client.get_run(run_id)
    assert points(client, run_id, "train/loss") == [(step, 10 / step) for step in range(1, 31)]
    assert points(client, run_id, "validation/bleu") == [(10, 10.0), (20, 20.0), (30, 30.0)]
    assert points(client, run_id, "test/bleu") == [(30, 31.5)]
    assert len(points(client, run_id, "train/grad_norm")) == 1
    assert run.data.params["model.d_model"] == "8"
    assert len(run.data.params) == 151
    assert run.data.tags["colour"] == "blue"
    assert run.data.tags["corpus"] == "phrasebook"
    assert not [key for key in run.data.tags if key.startswith("resumed.")]
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "samples.json", "type": "table"}]
    table = read_json(Path(client.download_artifacts(run_id, "samples.json")))
    assert table == {"columns": ["step", "translation"], "data": [[step, "ein Hund"] for step in (10, 20, 30)]}
    assert sorted(file.path for file in client.list_artifacts(run_id)) == ["config.yaml", "figures", "samples.json"]
    (dataset_input,) = run.inputs.dataset_inputs
    assert (dataset_input.dataset.name, dataset_input.dataset.digest) == ("phrasebook validation", "b" * 12)
    assert json.loads(dataset_input.dataset.profile) == {"pairs": 500}

    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    by_name = {model.name: model for model in models}
    assert sorted(model.name for model in models) == ["averaged", "step-10", "step-20", "step-30"]
    assert {model.status.name for model in models} == {"READY"}
    outputs = {output.model_id: output.step for output in run.outputs.model_outputs}
    assert outputs == {by_name[name].model_id: int(name[5:]) if name[5:].isdigit() else 30 for name in by_name}
    (metric,) = by_name["step-20"].metrics
    assert (metric.key, metric.value, metric.step) == ("validation/bleu", 20.0, 20)
    assert (metric.dataset_name, metric.dataset_digest) == ("phrasebook validation", "b" * 12)
    assert by_name["averaged"].params == {"average_of": "20, 30"}
    files = sorted(file.path for file in client.list_logged_model_artifacts(by_name["averaged"].model_id))
    assert files == ["MLmodel", "model.safetensors"]


def test_everything_reaches_the_store_once_even_if_it_is_sent_again(output_dir: Path):
    tracker = start(output_dir, "everything")
    folder = tracker.run_folder
    report_everything(output_dir, tracker, folder)
    assert tracker.close(timeout=60)
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


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(output_dir: Path):
    tracker = start(output_dir, "resumed")
    tracker.log_params({"batch": {"tokens": 100}, "seed": 1})
    worker = SpoolTracker(tracker.run_folder)
    for step in (1, 2, 3):
        worker.log_metrics({"train/loss": 1.0 / step}, step)
    assert tracker.close("KILLED", timeout=60)
    client = store_of(output_dir)
    run_id = tracker.run_id()
    assert client.get_run(run_id).info.status == "KILLED"

    again = start(output_dir, "resumed")
    again.log_params({"batch": {"tokens": 200}, "seed": 1})
    worker = SpoolTracker(again.run_folder)
    for step in (2, 3, 4):
        worker.log_metrics({"train/loss": 1.0 / step}, step)
    assert again.run_id(60) == run_id
    deadline = time.monotonic() + 30
    while client.get_run(run_id).info.status != "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert again.close(timeout=60)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert points(client, run_id, "train/loss") == [(step, 1.0 / step) for step in (1, 2, 3, 4)]
    assert run.data.params == {"batch.tokens": "100", "seed": "1"}
    assert {key: value for key, value in run.data.tags.items() if key.startswith("resumed.")} == {
        "resumed.batch.tokens": "200"
    }


def test_a_run_that_the_store_has_lost_is_made_anew_with_its_whole_history(output_dir: Path):
    tracker = start(output_dir, "lost")
    tracker.log_metrics({"train/loss": 2.0}, 1)
    assert tracker.close(timeout=60)
    client = store_of(output_dir)
    client.delete_run(tracker.run_id())

    again = start(output_dir, "lost")
    again.log_metrics({"train/loss": 1.0}, 2)
    assert again.close(timeout=60)
    assert again.run_id() != tracker.run_id()
    assert points(client, again.run_id(), "train/loss") == [(1, 2.0), (2, 1.0)]


def test_what_the_store_refuses_does_not_hold_up_the_rest(output_dir: Path, caplog: pytest.LogCaptureFixture):
    tracker = start(output_dir, "refused")
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.log_metrics({"a name with <signs> that MLflow does not allow": 1.0}, 1)
    tracker.log_metrics({"train/loss": 0.5}, 2)
    tracker.log_artifact(tracker.run_folder / "absent.txt")
    tracker.log_params({"after": "all"})
    assert tracker.close(timeout=60)
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
    assert tracker.close("FINISHED", timeout=60)
    assert is_reported(config, output_dir, folder)
    assert not is_reported(TrackingConfig(uri="http://127.0.0.1:9"), output_dir, folder), "told to another store"
    SpoolTracker(folder).log_metrics({"train/loss": 0.5}, 2)
    assert not is_reported(config, output_dir, folder), "a point is not uploaded"
    sync_run(folder)
    assert is_reported(config, output_dir, folder)
    assert start(output_dir, "told").close("FAILED", timeout=60)
    assert not is_reported(config, output_dir, folder), "it ended otherwise"


def test_system_metrics_are_logged(output_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking, "SYSTEM_METRICS_SECONDS", 0.2)
    folder = output_dir / "runs" / "system"
    tracker = MlflowTracker(TrackingConfig(), output_dir, folder, "system", {})
    deadline = time.monotonic() + 60
    while "system/cpu_utilization_percentage" not in (folder / "driver.jsonl").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert tracker.close(timeout=60)
    run = store_of(output_dir).get_run(tracker.run_id())
    assert 0 <= run.data.metrics["system/cpu_utilization_percentage"] <= 100
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0


def test_a_server_that_is_down_at_start_and_end_is_given_the_run_later(
    output_dir: Path, caplog: pytest.LogCaptureFixture
):
    started_at = time.monotonic()
    tracker = start(output_dir, "down", f"http://127.0.0.1:{free_port()}")
    report_everything(output_dir, tracker, tracker.run_folder)
    assert time.monotonic() - started_at < 1.0
    assert not tracker.close(timeout=3)
    assert tracker.run_id() is None
    assert "nothing is lost" in caplog.text
    with pytest.raises(UserError, match="Nothing is lost"):
        sync_run(tracker.run_folder)
    run_id = sync_run(tracker.run_folder, f"sqlite:///{output_dir}/mlflow.db")
    check_everything_is_there_once(output_dir, run_id)
    assert store_of(output_dir).get_run(run_id).info.status == "FINISHED"


@pytest.fixture(params=["answers 500", "takes 30 seconds"])
def bad_server(request: pytest.FixtureRequest) -> Iterator[tuple[str, threading.Event]]:
    """A server that fails in one of two ways, and an event that tells that it was asked."""
    asked, over = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            if request.param == "takes 30 seconds":
                over.wait(30)
            self.send_error(500)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    over.set()
    server.shutdown()


def test_a_failing_or_slow_server_never_makes_the_training_wait(
    output_dir: Path, bad_server: tuple[str, threading.Event], request: pytest.FixtureRequest
):
    uri, asked = bad_server
    tracker = start(output_dir, f"bad-{abs(hash(request.node.name))}", uri)
    worker = SpoolTracker(tracker.run_folder)
    assert asked.wait(60)
    slowest = 0.0
    for step in range(200):
        started_at = time.monotonic()
        worker.log_metrics({"train/loss": 1.0}, step)
        slowest = max(slowest, time.monotonic() - started_at)
    assert slowest < 1.0
    started_at = time.monotonic()
    assert not tracker.close(timeout=1)
    assert time.monotonic() - started_at < 5
    run_id = sync_run(tracker.run_folder, f"sqlite:///{output_dir}/mlflow.db")
    assert len(points(store_of(output_dir), run_id, "train/loss")) == 200


def test_no_password_is_in_the_run_the_log_or_the_store(output_dir: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    uri = f"http://user:{CANARY}@127.0.0.1:{free_port()}/?token={CANARY}"
    tracker = start(output_dir, "canary", uri)
    tracker.log_params({"tracking": {"uri": uri}})
    tracker.set_tags({"tracking.uri": uri})
    tracker.log_text(f"uri: {uri}\n", "config.yaml")
    tracker.log_model("step-1", 1, params={"uri": uri})
    assert not tracker.close(timeout=3)
    with pytest.raises(UserError, match=r"give tracking\.uri again") as missing:
        sync_run(tracker.run_folder)
    with pytest.raises(UserError) as failed:
        sync_run(tracker.run_folder, uri)
    sync_run(tracker.run_folder, f"sqlite:///{output_dir}/mlflow.db")
    assert CANARY not in caplog.text + str(missing.value) + str(failed.value)
    files = [path for path in output_dir.rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in files)
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


def test_the_address_is_the_configurations_or_the_environments_or_a_local_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert tracking.tracking_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://a:5000")
    assert tracking.tracking_uri(TrackingConfig(), tmp_path) == "http://a:5000"
    assert tracking.tracking_uri(TrackingConfig(uri="http://b:5000"), tmp_path) == "http://b:5000"


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


def test_the_ui_command_is_on_loopback_and_shows_no_password(tmp_path: Path):
    command, environment = ui_command(f"postgresql://user:{CANARY}@host/db", tmp_path, port=5001)
    assert CANARY not in " ".join(command)
    assert "--host 127.0.0.1 --port 5001" in " ".join(command)
    assert environment["MLFLOW_BACKEND_STORE_URI"].endswith("@host/db")
    assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    with pytest.raises(UserError, match="a UI of its own") as error:
        ui_command(f"http://user:{CANARY}@host:5000", tmp_path)
    assert CANARY not in str(error.value)
    assert run_url("http://host:5000/", "1", "abc").startswith("http://host:5000/#/experiments/1/runs/abc")


class Server:
    """A real `mlflow server` on loopback, to be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.command, environment = ui_command(f"sqlite:///{folder}/server.db", folder / "artifacts", port=self.port)
        self.environment = os.environ | environment
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2).close()
                return
            except OSError:
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_killed_half_way_gets_every_point_once(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
):
    server.start()
    uri = f"http://user:{CANARY}@127.0.0.1:{server.port}"
    tracker = start(tmp_path, "killed", uri)
    worker = SpoolTracker(tracker.run_folder)
    run_id = tracker.run_id(60)
    assert run_id
    slowest, step = 0.0, 0

    def train(seconds: float) -> None:
        nonlocal slowest, step
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            step += 1
            started_at = time.monotonic()
            worker.log_metrics({"train/loss": 1.0 / step, "train/learning_rate": 1e-3}, step)
            if step % 500 == 0:
                worker.log_metrics({"validation/bleu": step / 100}, step, model=f"step-{step}", dataset=DATASET)
                worker.log_model(f"step-{step}", step)
            slowest = max(slowest, time.monotonic() - started_at)
            time.sleep(0.002)

    train(4)
    server.kill()
    train(4)
    server.start()
    train(3)
    (tracker.run_folder / "config.yaml").write_text(f"uri: {uri}\n")
    tracker.log_artifact(tracker.run_folder / "config.yaml")
    (tracker.run_folder / "notes.txt").write_text("harmless\n")
    tracker.log_artifact(tracker.run_folder / "notes.txt")
    assert tracker.close(timeout=120)

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/server.db")
    assert points(client, run_id, "train/loss") == [(one, 1.0 / one) for one in range(1, step + 1)]
    assert points(client, run_id, "train/learning_rate") == [(one, 1e-3) for one in range(1, step + 1)]
    validated = list(range(500, step + 1, 500))
    assert validated
    assert points(client, run_id, "validation/bleu") == [(one, one / 100) for one in validated]
    run = client.get_run(run_id)
    models = client.search_logged_models([run.info.experiment_id])
    assert sorted(model.name for model in models) == sorted(f"step-{one}" for one in validated)
    assert all(len(model.metrics) == 1 for model in models)
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert run.info.status == "FINISHED"
    assert "works again" in caplog.text
    assert slowest < 1.0
    assert [file.name for file in (tmp_path / "artifacts").rglob("*.txt")] == ["notes.txt"]
    (tracker.run_folder / "config.yaml").unlink()
    with_password = [path for path in tmp_path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert with_password == []
    assert CANARY not in caplog.text


def test_a_killed_driver_loses_nothing(output_dir: Path):
    """The process is killed while it uploads; the next one does the rest."""
    folder = output_dir / "runs" / "killed-driver"
    program = (
        "import sys, time; from pathlib import Path; from pipeline.tracking import MlflowTracker, TrackingConfig\n"
        f"folder = Path({str(folder)!r})\n"
        f"tracker = MlflowTracker(TrackingConfig(system_metrics=False), Path({str(output_dir)!r}), folder, 'k', {{}})\n"
        "tracker.run_id(60)\n"
        "for step in range(100000):\n"
        "    tracker.log_metrics({'train/loss': float(step)}, step); time.sleep(0.0005)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 90
    mark = folder / "driver.uploaded"
    while not mark.exists() or read_json(mark)["offset"] == 0 or len(read_points(folder)) < 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    before = read_json(folder / "run.json")["run_id"]
    tracker = start(output_dir, "killed-driver")
    assert tracker.close(timeout=60)
    assert tracker.run_id() == before
    written = len(read_points(folder))
    assert [step for step, _ in points(store_of(output_dir), before, "train/loss")] == list(range(written))
