"""`transloom sync`: runs that ended in any way while MLflow was away, from spools made by hand."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow_database import give_database

from transloom.jobs.commands.sync import main
from transloom.jobs.config.compose import to_yaml
from transloom.jobs.config.schema import Config
from transloom.jobs.runs.workspace import locked
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json, write_json
from transloom.pipeline.tracking.address import TrackingConfig
from transloom.pipeline.tracking.spool import DRIVER_SPOOL, MetricLog
from transloom.pipeline.tracking.tracker import SpoolTracker

AWAY = "http://127.0.0.1:9"
ENDED_MS = 1_800_000_000_000
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_server_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of one store for all tests."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    give_database(tmp_path_factory, file)
    return f"sqlite:///{file}"


def make_run(folder: Path, status: str | None, uri: str = AWAY, **more: str) -> Path:
    """A run of three steps that reported nothing yet; status None: its process was killed."""
    folder.mkdir(parents=True)
    record = {
        "run_id": None,
        "key": str(folder).replace("/", "-"),
        "run_name": folder.name,
        "experiment": "transloom",
        "tags": {},
    }
    record |= {"started_ms": ENDED_MS - 9000, "tracking_uri": uri, "artifact_location": None}
    write_json(folder / "run.json", record)
    enabled = more.pop("tracking", "") != "off"
    (folder / "config.yaml").write_text(to_yaml(replace(Config(), tracking=TrackingConfig(enabled=enabled))))
    worker = SpoolTracker(folder)
    for step in (1, 2, 3):
        worker.log_metrics({"train/loss": 1 / step, "train/learning_rate": 0.1}, step)
    worker.close()
    driver = MetricLog(folder / DRIVER_SPOOL, keep_changes=True)
    driver.write({"do": "text", "text": "a: 1\n", "name": "config.yaml"})
    driver.write({"do": "tags", "tags": more})
    if status:
        driver.write({"do": "status", "status": status, "time_ms": ENDED_MS})
    driver.close()
    with locked(folder):
        pass
    return folder


def test_every_way_to_end_is_uploaded_once(tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]):
    from mlflow import MlflowClient

    states = {"done": "FINISHED", "stopped": "KILLED", "crashed": "FAILED", "killed": None}
    folders = {name: make_run(tmp_path / "runs" / name, status) for name, status in states.items()}
    sweep = make_run(tmp_path / "sweeps" / "hunt", "FINISHED")
    trials = [
        make_run(tmp_path / "runs" / name, "FINISHED", **{"sweep.trial": "0"})
        for name in ("hunt-000", "hunt-000-seed001")
    ]
    lookalike = make_run(tmp_path / "runs" / "hunt-7000", "FINISHED")
    make_run(tmp_path / "runs" / "untracked", "FINISHED", tracking="off")
    words = [f"output_dir={tmp_path}", f"tracking.uri={store}"]
    assert main(words) == 0
    told = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    for name in (*states, "hunt", "hunt-000", "hunt-000-seed001", "hunt-7000"):
        assert "  6 points and 1 files uploaded to sqlite:///" in told[name], told[name]
    assert told["killed"].endswith(", KILLED") and told["crashed"].endswith(", FAILED")
    assert "tracking=off" in told["untracked"]

    client = MlflowClient(store)
    for name, folder in folders.items():
        run = client.get_run(read_json(folder / "run.json")["run_id"])
        assert (run.info.run_name, run.info.status) == (name, states[name] or "KILLED")
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert sorted((point.step, point.value) for point in history) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
        last = max(point.timestamp for point in history)
        assert run.info.end_time == (last if name == "killed" else ENDED_MS)
    parent = read_json(sweep / "run.json")["run_id"]
    for trial in trials:
        tags = client.get_run(read_json(trial / "run.json")["run_id"]).data.tags
        assert tags["mlflow.parentRunId"] == parent
    tags = client.get_run(read_json(lookalike / "run.json")["run_id"]).data.tags
    assert "mlflow.parentRunId" not in tags

    (experiment,) = [one for one in client.search_experiments() if one.name == "transloom"]
    total = len(client.search_runs([experiment.experiment_id]))
    assert main(words) == 0
    again = capsys.readouterr().out
    assert again.count("0 points and 0 files uploaded") + again.count("nothing to do") == 8
    assert len(client.search_runs([experiment.experiment_id])) == total


def test_again_there_is_nothing_to_do(tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]):
    make_run(tmp_path / "runs" / "one", "FINISHED", uri=store)
    assert main(["one", f"output_dir={tmp_path}"]) == 0
    assert "6 points" in capsys.readouterr().out
    assert main([str(tmp_path / "runs" / "one"), f"output_dir={tmp_path}"]) == 0
    assert "nothing to do, FINISHED" in capsys.readouterr().out


def test_a_named_sweep_brings_its_trials(tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]):
    make_run(tmp_path / "sweeps" / "hunt", "KILLED", store)
    make_run(tmp_path / "runs" / "hunt-001", None, store, **{"sweep.trial": "1"})
    make_run(tmp_path / "runs" / "other", "FINISHED", store)
    assert main(["hunt", f"output_dir={tmp_path}"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["hunt", "hunt-001"]


def test_a_run_in_use_is_left_to_its_owner(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = make_run(tmp_path / "runs" / "live", None)
    program = (
        "import time; from pathlib import Path; from transloom.jobs.runs.workspace import locked\n"
        f"with locked(Path({str(folder)!r})): print('locked', flush=True); time.sleep(600)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    try:
        assert owner.stdout and owner.stdout.readline() == b"locked\n"
        before = (folder / DRIVER_SPOOL).read_bytes()
        assert main([f"output_dir={tmp_path}"]) == 0
        assert f"in use by process {owner.pid}" in capsys.readouterr().out
        assert (folder / DRIVER_SPOOL).read_bytes() == before
    finally:
        owner.kill()
        owner.wait()


def test_an_open_run_of_another_machine_is_left_alone_until_it_is_named(tmp_path: Path, store: str, capsys):
    folder = make_run(tmp_path / "runs" / "far", None, uri=store)
    (folder / "lock").write_text("process 7 on another-machine")
    assert main([f"output_dir={tmp_path}"]) == 0
    assert "another machine" in capsys.readouterr().out
    assert main(["far", f"output_dir={tmp_path}"]) == 0
    assert "6 points and 1 files uploaded" in capsys.readouterr().out


def test_a_server_that_is_still_away_is_asked_once_and_named(tmp_path: Path, capsys):
    for name in ("a", "b", "c"):
        make_run(tmp_path / "runs" / name, "FINISHED")
    started_at = time.monotonic()
    with pytest.raises(UserError, match="3 of 3 runs are not uploaded: a, b, c"):
        main([f"output_dir={tmp_path}"])
    assert time.monotonic() - started_at < 60
    assert capsys.readouterr().out.count(AWAY) == 3


def test_what_is_no_run_is_refused(tmp_path: Path):
    make_run(tmp_path / "runs" / "known", "FINISHED")
    with pytest.raises(UserError, match=r"'unknown'.*known"):
        main(["unknown", f"output_dir={tmp_path}"])
    with pytest.raises(UserError, match="tracking=off"):
        main(["tracking=off", f"output_dir={tmp_path}"])
