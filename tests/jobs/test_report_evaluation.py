"""What MLflow is told: another search, or an unfinished training, replaces nothing of a run's; dead runs are closed."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from comparable import GOOD, REFERENCES, make_documents, make_language_run, make_run
from safetensors.torch import save_file

from transloom.jobs.config.compose import load_config, read_config, to_yaml
from transloom.jobs.runs.model import samples_of
from transloom.jobs.runs.report import end_dead_runs, report_evaluation, report_validation
from transloom.jobs.runs.workspace import Run, locked
from transloom.pipeline.evaluate.scores import score
from transloom.pipeline.files import read_json, write_json
from transloom.pipeline.tasks.task import Evaluation, Score
from transloom.pipeline.tracking.spool import DRIVER_SPOOL, MetricLog, driver_records
from transloom.pipeline.tracking.tracker import SpoolTracker


def told(root: Path, **result: Any) -> list[dict[str, Any]]:
    """What a tracker is told of an evaluation of a run of 20 steps."""
    folder = make_run(root, "a", GOOD)
    save_file({"w": torch.zeros(3)}, folder / "model" / "model.safetensors")
    found = {name: {"value": one.value, "signature": one.signature} for name, one in score(GOOD, REFERENCES).items()}
    tracker: Any = SpoolTracker(folder, DRIVER_SPOOL)
    everything = {
        "folder": str(folder),
        "steps_averaged": [15, 20],
        "step": 20,
        "training_ended": True,
        "search": "beam 4, length penalty 0.6",
        "label": "beam4-penalty0.6",
        "is_own_search": True,
        "test": found,
        "validation": found,
        "seconds": {"test": 1.0},
        "samples": [["a", "b", "c"]],
    } | result
    report_evaluation(Run("a", folder, read_config(folder / "config.yaml")), everything, tracker)
    return driver_records(folder)


@pytest.mark.parametrize(
    ("result", "apart"),
    [
        ({}, ""),
        ({"is_own_search": False, "label": "beam1-penalty0.0"}, "_beam1-penalty0.0"),
        ({"training_ended": False, "step": 15}, "_step15"),
    ],
)
def test_scores_are_named_by_their_search_and_step(tmp_path: Path, result: dict[str, Any], apart: str) -> None:
    records = told(tmp_path, **result)
    names = {name for record in records for name in record.get("metrics", {})}
    tags = {name: value for record in records for name, value in record.get("tags", {}).items()}
    folders = {record["folder"] for record in records if record.get("do") == "artifact"}
    assert {f"test{apart}/bleu", f"averaged{apart}/validation_bleu", f"test{apart}/seconds"} <= names
    assert all(name.startswith((f"test{apart}/", f"averaged{apart}/")) for name in names)
    assert {record["name"] for record in records if record.get("do") == "table"} == {f"test_samples{apart}.json"}
    assert {folder for folder in folders if folder and "evaluation" in folder} == {f"evaluation{apart}"}
    assert tags[f"test{apart}.search"] == "beam 4, length penalty 0.6"
    assert tags[f"test{apart}.steps"].startswith("15, 20")
    assert ("mlflow.note.content" in tags) == result.get("is_own_search", True)
    if apart == "_step15":
        assert tags["test_step15.steps"] == "15, 20; the training has not ended, step 15"
        assert "has not ended: 15 steps" in tags["mlflow.note.content"]


@pytest.mark.parametrize("columns", [("source", "reference", "translation"), ("prompt", "continuation")])
def test_samples_of_a_file_have_the_order_of_their_columns(tmp_path: Path, columns: tuple[str, ...]) -> None:
    write_json(tmp_path / "result.json", {"samples": {column: [column] for column in columns}})
    assert list(samples_of(read_json(tmp_path / "result.json"))) == list(columns)


def test_a_language_model_without_a_test_set_has_samples_of_both_kinds(tmp_path: Path) -> None:
    folder = make_language_run(tmp_path, "a", make_documents(tmp_path, test=[]), [2.0])
    save_file({"w": torch.zeros(3)}, folder / "model" / "model.safetensors")
    run = Run("a", folder, read_config(folder / "config.yaml"))
    tracker: Any = SpoolTracker(folder, DRIVER_SPOOL)
    samples = {"prompt": ["def"], "continuation": [" f(x):"]}
    score = Score("bits_per_byte", 2.0, "context:256|stride:256|ends:yes")
    report_validation(tracker, run, 20, Evaluation(1.0, {score.name: score}, 10, samples=samples))
    (file,) = folder.glob("evaluation/*/result.json")
    report_evaluation(run, read_json(file) | {"samples": samples, "folder": str(file.parent)}, tracker)
    records = driver_records(folder)
    tables = [record["name"] for record in records if record.get("do") == "table"]
    assert set(tables) == {"validation_samples.json", "averaged_validation_samples.json"}
    metrics = {name: value for record in records for name, value in record.get("metrics", {}).items()}
    assert metrics["averaged/validation_bits_per_byte"] == 2.0
    assert metrics["averaged/validation_bits_per_byte_of_5-gram_of_bytes"] == 2.5
    (note,) = [record["tags"]["mlflow.note.content"] for record in records if "mlflow.note.content" in str(record)]
    assert "- Data: standard_library: documents 80 train, 10 validation" in note
    assert "- Validation: **bits per byte 2.0000**" in note and "100 text" not in note and "2,000 text tokens" in note


def test_only_runs_of_this_machine_that_nobody_holds_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = []
    monkeypatch.setattr(
        "transloom.jobs.runs.report.end_dead_run", lambda folder, uri: ended.append(folder.name) or True
    )
    host = socket.gethostname()
    owners = {"dead": host, "closed": host, "elsewhere": f"not-{host}", "held": host, "silent": host, "stored": host}
    for name, owner in owners.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        tracking = "off" if name == "silent" else "local"
        storage = "memory://bucket" if name == "stored" else "null"  # another machine may have gone on with it
        words = [f"output_dir={tmp_path}", f"name={name}", f"tracking={tracking}", f"storage={storage}"]
        config = load_config(words)
        (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        write_json(folder / "run.json", {})
        (folder / "lock").write_text(f"process 1 on {owner}")
        spool = MetricLog(folder / "driver.jsonl")
        spool.write({"do": "status", "status": "FINISHED" if name == "closed" else "RUNNING"})
        spool.close()
    with locked(tmp_path / "runs" / "held"):
        end_dead_runs(tmp_path, "sqlite:///mlflow.db")
    assert ended == ["dead"]
    assert "the run dead is KILLED" in capsys.readouterr().out
