"""Tracking with stores that are down, slow, failing or killed half-way, and drivers that are killed."""

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow_database import give_database
from stores import (
    CANARY,
    DATASET,
    check_everything_is_there_once,
    free_port,
    points,
    report_everything,
    start,
    store_of,
)

from transloom.jobs.commands.sync import main as sync
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json
from transloom.pipeline.tracking.address import ui_command
from transloom.pipeline.tracking.mlflow_store import MlflowStore
from transloom.pipeline.tracking.run_page import sync_run
from transloom.pipeline.tracking.spool import read_points
from transloom.pipeline.tracking.tracker import SpoolTracker

pytestmark = pytest.mark.usefixtures("no_server_from_the_environment")


def test_a_server_that_is_down_at_start_and_end_is_given_the_run_later(
    output_dir: Path, caplog: pytest.LogCaptureFixture
):
    started_at = time.monotonic()
    tracker = start(output_dir, "down", f"http://127.0.0.1:{free_port()}")
    report_everything(output_dir, tracker, tracker.run_folder)
    assert time.monotonic() - started_at < 60, "MLflow's client alone would try for minutes"
    assert not tracker.close(timeout=60)
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
    assert asked.wait(300)
    slowest = 0.0
    for step in range(200):
        started_at = time.monotonic()
        worker.log_metrics({"train/loss": 1.0}, step)
        slowest = max(slowest, time.monotonic() - started_at)
    assert slowest < 20
    started_at = time.monotonic()
    assert not tracker.close(timeout=1)
    assert time.monotonic() - started_at < 25
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
    with pytest.raises(UserError, match=r"give tracking\.uri=<address> again") as missing:
        sync_run(tracker.run_folder)
    with pytest.raises(UserError) as failed:
        sync_run(tracker.run_folder, uri)
    sync_run(tracker.run_folder, f"sqlite:///{output_dir}/mlflow.db")
    assert CANARY not in caplog.text + str(missing.value) + str(failed.value)
    files = [path for path in output_dir.rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in files)
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


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
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=30).close()
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
def server(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    give_database(tmp_path_factory, tmp_path / "server.db")
    server = Server(tmp_path)
    yield server
    server.kill()


def test_a_store_that_fails_is_not_waited_for_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A sweep closes a run after each trial, in the loop that hears of the others' validations."""

    def fail(store: MlflowStore) -> bool:
        raise ConnectionError("away")

    monkeypatch.setattr(MlflowStore, "find_run", fail)
    tracker = start(tmp_path, "away", "http://127.0.0.1:9")
    deadline = time.monotonic() + 60
    while not tracker._uploader._is_failing:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started_at = time.monotonic()
    assert not tracker.close(timeout=30)
    assert time.monotonic() - started_at < 10


@pytest.mark.slow
def test_sync_brings_runs_that_ended_while_the_server_was_down(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
):
    """Whatever ended them: their end, SIGTERM, an error, SIGKILL."""
    from mlflow import MlflowClient

    states = {"ended": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "killed": None}
    uri = f"http://127.0.0.1:{server.port}"
    program = (  # a process for each run, which all have what the first one took seconds to import
        "import os; from pathlib import Path; from transloom.jobs.runs.workspace import locked\n"
        "from transloom.jobs.config.compose import to_yaml; from transloom.jobs.config.schema import Config\n"
        "from transloom.pipeline.tracking.tracker import SpoolTracker\n"
        "from transloom.pipeline.tracking.uploader import MlflowTracker, TrackingConfig\n"
        f"for name, status in {states!r}.items():\n"
        "    if child := os.fork():\n"
        "        os.waitpid(child, 0)\n"
        "        continue\n"
        f"    root = Path({str(tmp_path)!r}); folder = root / 'runs' / name; folder.mkdir(parents=True)\n"
        "    (folder / 'config.yaml').write_text(to_yaml(Config()))\n"
        f"    config = TrackingConfig(uri={uri!r}, system_metrics=False)\n"
        "    with locked(folder):\n"
        "        tracker = MlflowTracker(config, root, folder, name, {})\n"
        "        worker = SpoolTracker(folder)\n"
        "        for step in range(1, 101): worker.log_metrics({'train/loss': 1 / step}, step)\n"
        "        tracker.log_text('a: 1', 'config.yaml')\n"
        "        assert status is None or not tracker.close(status, timeout=1)\n"
        "        os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    with pytest.raises(UserError, match="4 of 4 runs are not uploaded"):
        sync([f"output_dir={tmp_path}"])
    server.start()
    capsys.readouterr()
    assert sync([f"output_dir={tmp_path}"]) == 0
    assert capsys.readouterr().out.count("100 points and 1 files uploaded") == 4
    assert sync([f"output_dir={tmp_path}"]) == 0
    assert capsys.readouterr().out.count("nothing to do") == 4
    client = MlflowClient(f"sqlite:///{tmp_path}/server.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "transloom"]
    runs = {run.info.run_name: run.info for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.status for name, run in runs.items()} == {name: one or "KILLED" for name, one in states.items()}
    for run in runs.values():
        assert points(client, run.run_id, "train/loss") == [(step, 1 / step) for step in range(1, 101)]


@pytest.mark.slow
def test_a_server_killed_half_way_gets_every_point_once(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
):
    server.start()
    uri = f"http://user:{CANARY}@127.0.0.1:{server.port}"
    tracker = start(tmp_path, "killed", uri)
    worker = SpoolTracker(tracker.run_folder)
    run_id = tracker.run_id(300)
    assert run_id
    slowest, step = 0.0, 0

    def train(seconds: float) -> None:
        nonlocal slowest, step
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            step += 1
            started_at = time.monotonic()
            worker.log_metrics({"train/loss": 1.0 / step, "train/learning_rate": 1e-3}, step)
            if step % 200 == 0:
                worker.log_metrics({"validation/bleu": step / 100}, step, model=f"step-{step}", dataset=DATASET)
                worker.log_model(f"step-{step}", step)
            slowest = max(slowest, time.monotonic() - started_at)
            time.sleep(0.002)

    train(1)
    server.kill()
    train(4)
    server.start()
    train(1)
    (tracker.run_folder / "config.yaml").write_text(f"uri: {uri}\n")
    tracker.log_artifact(tracker.run_folder / "config.yaml")
    (tracker.run_folder / "notes.txt").write_text("harmless\n")
    tracker.log_artifact(tracker.run_folder / "notes.txt")
    assert tracker.close(timeout=300)

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/server.db")
    assert points(client, run_id, "train/loss") == [(one, 1.0 / one) for one in range(1, step + 1)]
    assert points(client, run_id, "train/learning_rate") == [(one, 1e-3) for one in range(1, step + 1)]
    validated = list(range(200, step + 1, 200))
    assert validated
    assert points(client, run_id, "validation/bleu") == [(one, one / 100) for one in validated]
    run = client.get_run(run_id)
    models = client.search_logged_models([run.info.experiment_id])
    assert sorted(model.name for model in models) == sorted(f"step-{one}" for one in validated)
    assert all(len(model.metrics) == 1 for model in models)
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert run.info.status == "FINISHED"
    assert "works again" in caplog.text
    assert slowest < 6, "the server was away for more than eight seconds"
    assert [file.name for file in (tmp_path / "artifacts").rglob("*.txt")] == ["notes.txt"]
    (tracker.run_folder / "config.yaml").unlink()
    with_password = [path for path in tmp_path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert with_password == []
    assert CANARY not in caplog.text


def test_a_killed_driver_loses_nothing(output_dir: Path):
    """The process is killed while it uploads; the next one does the rest."""
    folder = output_dir / "runs" / "killed-driver"
    program = (
        "import sys, time; from pathlib import Path\n"
        "from transloom.pipeline.tracking.uploader import MlflowTracker, TrackingConfig\n"
        f"folder = Path({str(folder)!r})\n"
        f"tracker = MlflowTracker(TrackingConfig(system_metrics=False), Path({str(output_dir)!r}), folder, 'k', {{}})\n"
        "tracker.run_id(300)\n"
        "for step in range(100000):\n"
        "    tracker.log_metrics({'train/loss': float(step)}, step); time.sleep(0.0005)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 300
    mark = folder / "driver.uploaded"
    while not mark.exists() or read_json(mark)["offset"] == 0 or len(read_points(folder)) < 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    before = read_json(folder / "run.json")["run_id"]
    tracker = start(output_dir, "killed-driver")
    assert tracker.close(timeout=300)
    assert tracker.run_id() == before
    written = len(read_points(folder))
    assert [step for step, _ in points(store_of(output_dir), before, "train/loss")] == list(range(written))


def test_a_database_whose_making_was_ended_is_made_anew(tmp_path: Path):
    """By a full disk. MLflow would not go on with a database that has some of its tables."""
    record = {"key": "k", "run_name": "r", "experiment": "transloom", "tags": {}, "started_ms": 1, "run_id": None}
    store = MlflowStore(f"sqlite:///{tmp_path}/mlflow.db", record | {"artifact_location": None})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(Exception, match="disk"):
            store.find_run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    assert store.find_run()
    assert [one.name for one in tmp_path.iterdir()] == ["mlflow.db"]
