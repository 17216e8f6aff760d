"""`transloom runs`: what is listed, and what renaming, archiving and deleting change, from folders made by hand."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow_database import give_database

from transloom.jobs.commands.runs import main
from transloom.jobs.config.compose import load_config, to_yaml
from transloom.jobs.runs.upkeep import began_with
from transloom.jobs.runs.workspace import locked
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json, write_json
from transloom.pipeline.tracking.run_page import sync_run
from transloom.pipeline.tracking.spool import DRIVER_SPOOL, MetricLog
from transloom.pipeline.tracking.tracker import SpoolTracker

CONFIG = load_config(["train.max_steps=100"])
STARTED_MS = 1_800_000_000_000


@pytest.fixture(autouse=True)
def no_server_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def make_run(
    root: Path, name: str, status: str | None = "FINISHED", step: int = 100, uri: str = "", initial: str | None = None
) -> Path:
    """A run of 100 steps that came to `step`, and reported its loss at each tenth.

    Args:
        status: the tracker's last; None: killed.
    """
    folder = root / "runs" / name
    folder.mkdir(parents=True)
    config = replace(CONFIG, train=replace(CONFIG.train, initial=initial))
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    selects = {"name": "bleu", "title": "BLEU", "higher_is_better": True, "digits": 2}
    record = {"run_id": None, "key": f"key-{name}", "run_name": name, "experiment": "transloom", "tags": {}}
    record |= {"started_ms": STARTED_MS, "tracking_uri": uri, "artifact_location": None, "selects": selects}
    write_json(folder / "run.json", record)
    tracker = SpoolTracker(folder)
    for at in range(10, step + 1, 10):
        tracker.log_metrics({"train/loss": 100 / at}, at)
    tracker.close()
    driver = MetricLog(folder / DRIVER_SPOOL, keep_changes=True)
    driver.write({"do": "status", "status": "RUNNING"})
    if status:
        driver.write({"do": "status", "status": status, "time_ms": STARTED_MS + 60_000})
    driver.close()
    progress = {"step": step, "max_steps": 100, "eta_seconds": 4.0, "validation_score": 12.5, "validation_step": step}
    write_json(folder / "progress.json", progress)
    if step == 100:
        write_json(folder / "training.json", {"step": 100, "validations": [{"step": 100, "loss": 1.0, "bleu": 30.0}]})
    return folder


def listed(root: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    capsys.readouterr()
    assert main([f"output_dir={root}", "format=json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_states_steps_scores_and_sizes(tmp_path, capsys):
    done = make_run(tmp_path, "done")
    (done / "evaluation" / "beam4-a").mkdir(parents=True)
    result = {"is_own_search": True, "training_ended": True, "step": 100, "test": {"bleu": {"value": 33.25}}}
    write_json(done / "evaluation" / "beam4-a" / "result.json", result)
    make_run(tmp_path, "crashed", "FAILED", step=20)
    make_run(tmp_path, "stopped", "KILLED", step=40)
    make_run(tmp_path, "killed", None, step=50)
    busy = make_run(tmp_path, "busy", None, step=60)
    (busy / "checkpoint").write_bytes(b"x" * 5000)
    (busy / "elsewhere").symlink_to("/usr")
    os.link(busy / "checkpoint", busy / "again")
    with locked(busy):
        runs = {run["name"]: run for run in listed(tmp_path, capsys)}
    assert {name: (run["state"], run["step"]) for name, run in runs.items()} == {
        "done": ("finished", 100),
        "crashed": ("failed", 20),
        "stopped": ("stopped", 40),
        "killed": ("stopped", 50),
        "busy": ("running", 60),
    }
    assert (runs["done"]["score"], runs["done"]["score_name"]) == (33.25, "test BLEU")
    assert (runs["busy"]["score"], runs["busy"]["score_name"]) == (12.5, "validation BLEU")
    assert all((run["max_steps"], run["task"], run["started"]) == (100, "translation", 1.8e9) for run in runs.values())
    own = sum(os.lstat(file).st_size for file in busy.iterdir() if file.name not in ("again", "lock"))
    assert own <= runs["busy"]["size_bytes"] < own + 200  # the lock's owner


def test_a_runs_progress_from_another_shell(tmp_path, capsys):
    folder = make_run(tmp_path, "first", None, step=60)
    with locked(folder):
        run = listed(tmp_path, capsys, "first")
        main([f"output_dir={tmp_path}", "first"])
    assert (run["state"], run["progress"]["step"], run["progress"]["eta_seconds"]) == ("running", 60, 4.0)
    assert [step for step, _ in run["progress"]["losses"]] == [20, 30, 40, 50, 60]
    assert run["progress"]["losses"][-1][1] == pytest.approx(100 / 60)
    told = capsys.readouterr().out
    assert "Step     60 of 100" in told and "1.667 at 60" in told and "in use by process" in told
    assert main([f"output_dir={tmp_path}", "first", "watch=true"]) == 0  # nobody trains any more: it ends at once


@pytest.mark.parametrize(
    "content", ["", "[]", "[" * 100_000, '{"step": "x", "validations": 3}', '{"selects": {"a": 1}}']
)
def test_damaged_files_leave_their_values_out(tmp_path, capsys, content):
    folder = make_run(tmp_path, "first")
    for name in ("progress.json", "training.json", "run.json"):
        (folder / name).write_text(content, encoding="utf-8")
    (run,) = listed(tmp_path, capsys)
    assert (run["step"], run["score"], run["max_steps"]) == (None, None, 100)
    assert main([f"output_dir={tmp_path}", "first"]) == 0
    (folder / "config.yaml").write_text("a: [", encoding="utf-8")
    (run,) = listed(tmp_path, capsys)
    assert (run["name"], run["max_steps"]) == ("first", None)
    main([f"output_dir={tmp_path}", "delete", "first", "yes=true", "tracking=off"])
    assert not folder.exists()


def test_deletion_asks_refuses_and_removes_the_folder_alone(tmp_path, capsys, monkeypatch):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    root, words = tmp_path / "outputs", [f"output_dir={tmp_path}/outputs", "delete"]
    first, second = make_run(root, "first"), make_run(root, "second", initial="first")
    (first / "link").symlink_to(outside)
    with pytest.raises(UserError, match=r"^first: train.initial of second"):
        main([*words, "first", "yes=true"])
    with locked(second), pytest.raises(UserError, match=r"^second: is in use by"):
        main([*words, "second", "yes=true"])
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(UserError, match=r"^yes: "):
        main([*words, "second"])
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda question: "n")
    with pytest.raises(UserError, match=r"^delete: "):
        main([*words, "second"])
    assert second.exists()
    monkeypatch.setattr("builtins.input", lambda question: "y")
    main([*words, "second"])
    main([*words, "first", "yes=true"])
    assert (outside / "kept").exists() and list((root / "runs").iterdir()) == []
    (root / "runs" / "linked").symlink_to(make_run(tmp_path / "other", "linked"))
    with pytest.raises(UserError, match=r"^linked: .* is a link"):
        main([*words, "linked", "yes=true"])
    with pytest.raises(UserError, match="'absent'"):
        main([*words, "absent", "yes=true"])


@pytest.mark.parametrize("initial", ["first", "{root}/runs/first", "{root}/runs/first/model", "/old/runs/first/model"])
def test_who_began_with_a_run(tmp_path, initial):
    first = make_run(tmp_path, "first")
    make_run(tmp_path, "other", initial=f"{tmp_path}/runs/firsts")
    assert began_with(tmp_path, first) == []
    make_run(tmp_path, "second", initial=initial.format(root=tmp_path))
    assert began_with(tmp_path, first) == ["second"]


def test_a_name_that_is_taken_or_none_is_refused(tmp_path):
    make_run(tmp_path, "first"), make_run(tmp_path, "second")
    words = [f"output_dir={tmp_path}"]
    main([*words, "archive", "second"])
    for name in ("second", "first", "../a", ".a", "a b"):
        with pytest.raises(UserError, match=r"^rename: "):
            main([*words, "rename", "first", name])
    with locked(tmp_path / "runs" / "first"), pytest.raises(UserError, match=r"^first: is in use"):
        main([*words, "rename", "first", "third"])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["first"]


@pytest.mark.parametrize("what", ["archive", "unarchive"])
def test_no_run_is_moved_where_a_name_is_wrong(tmp_path, what):
    make_run(tmp_path, "first"), make_run(tmp_path, "second")
    words = [f"output_dir={tmp_path}"]
    main([*words, "archive", "second"])
    with pytest.raises(UserError, match="nope"):
        main([*words, what, {"archive": "first", "unarchive": "second"}[what], "nope"])
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["first"]


def test_mlflow_is_told_of_every_change(tmp_path, tmp_path_factory, capsys):
    from mlflow import MlflowClient

    give_database(tmp_path_factory, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    folder = make_run(tmp_path, "first", uri=uri)
    client, run_id, words = MlflowClient(uri), sync_run(folder), [f"output_dir={tmp_path}"]

    def seen() -> tuple[str | None, str]:
        info = client.get_run(run_id).info
        return info.run_name, info.lifecycle_stage

    assert seen() == ("first", "active")
    main([*words, "rename", "first", "best"])
    assert seen() == ("best", "active")
    assert read_json(tmp_path / "runs" / "best" / "run.json")["run_name"] == "best"
    main([*words, "archive", "best"])
    assert seen() == ("best", "deleted")
    assert listed(tmp_path, capsys) == []
    assert [run["name"] for run in listed(tmp_path, capsys, "archived=true")] == ["best"]
    main([*words, "unarchive", "best"])
    assert seen() == ("best", "active") and (tmp_path / "runs" / "best" / "training.json").exists()
    main([*words, "delete", "best", "yes=true"])
    assert seen() == ("best", "deleted") and not (tmp_path / "runs" / "best").exists()


def test_a_server_that_is_away_keeps_the_run(tmp_path):
    folder = make_run(tmp_path, "first", uri="http://127.0.0.1:9")
    write_json(folder / "run.json", read_json(folder / "run.json") | {"run_id": "a" * 32})
    words = [f"output_dir={tmp_path}", "delete", "first", "yes=true"]
    with pytest.raises(UserError, match=r"^tracking.uri: "):
        main(words)
    assert (folder / "config.yaml").exists()
    main([*words, "tracking=off"])
    assert not folder.exists()
