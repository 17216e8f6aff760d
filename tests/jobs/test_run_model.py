"""Whoever uses a run's model gets the average of the steps that it should be of by now, and is told which these are."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from transloom.jobs.config.compose import load_config, to_yaml
from transloom.jobs.runs.model import _ranked, export_model, find_model, steps_of_model, tokens_of, training_of
from transloom.jobs.runs.workspace import Run, identity, locked
from transloom.jobs.training.evaluate import evaluation_folder, is_evaluated, kept_result
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.data.tokenizer import TokenizerConfig, train_tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import Stage, read_json, write_json
from transloom.pipeline.run_folder import CONFIG_FILE, LOCK_FILE, PREPARED_FILE, TRAINING_FILE
from transloom.pipeline.tasks.task import Metric
from transloom.pipeline.tracking.spool import MetricLog
from transloom.pipeline.train.checkpoint import save_weights


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text").write_bytes(b"Ein Hund rennt.\n" * 20)
    train_tokenizer([folder / "text"], TokenizerConfig(vocab_size=300), folder)
    return folder


@pytest.fixture
def root(tmp_path: Path, tokenizer: Path) -> Path:
    """An output folder with the run "a", trained for 80 steps: it averages its snapshots of steps 40 and 80."""
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    words = [f"output_dir={tmp_path}", "name=a", "train.average=2", "train.average_of=last", "train.validate_every=40"]
    (folder / CONFIG_FILE).write_text(to_yaml(load_config(words)), encoding="utf-8")
    write_json(folder / PREPARED_FILE, {"tokenizer": str(tokenizer), "shards": str(folder / "gone")})
    for step in (40, 80):
        snapshot(folder, step)
    end_training(folder, 40, 80)
    return tmp_path


def snapshot(folder: Path, step: int) -> None:
    """Weights that are the number of the step."""
    save_weights(folder / "weights", step, {"w": torch.full((3,), float(step))}, keep_last=9)


def end_training(folder: Path, *validated: int) -> None:
    validations = [{"step": step, "bleu": float(step), "loss": 1.0} for step in validated]
    counted = {"step": validated[-1], "seconds": 1.0, "source_tokens": 1, "target_tokens": 1, "world_size": 1}
    write_json(folder / TRAINING_FILE, counted | {"validations": validations})


def test_the_best_steps_are_those_of_the_metric_whichever_way_it_goes() -> None:
    scores = {10: 3.0, 20: 1.0, 30: None, 40: 2.0, 50: float("nan")}
    assert _ranked(scores, Metric("accuracy", "accuracy")) == [10, 40, 20, 30, 50]
    assert _ranked(scores, Metric("perplexity", "perplexity", higher_is_better=False)) == [20, 40, 10, 30, 50]


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_what_is_no_number_is_never_the_best(higher_is_better):
    metric = Metric("x", "x", higher_is_better)
    records = [{"x": math.nan}, {"x": 2.0}, {"x": math.nan}]
    assert metric.best(records) == {"x": 2.0}
    assert metric.is_better(2.0, math.nan) and not metric.is_better(math.nan, 2.0)


def test_tokens_are_named_by_their_columns() -> None:
    assert tokens_of({"step": 3, "source_tokens": 5, "target_tokens": 7}) == {"source": 5, "target": 7}
    assert tokens_of({"text_tokens": 9, "seconds": 1.0}) == {"text": 9}


def value(model: Path) -> float:
    return load_file(model / "model.safetensors")["w"].unique().item()


@pytest.mark.parametrize("word", ["a", "runs/a", "runs/a/model"])
def test_a_run_that_trained_on_is_used_with_its_new_model(
    root: Path, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = root / "runs" / "a"
    assert value(find_model("a", root)) == 60.0
    assert capsys.readouterr().err == "transloom: the model of the run a is the average of steps 40, 80\n"
    snapshot(folder, 120)
    end_training(folder, 40, 80, 120)
    monkeypatch.chdir(root)
    assert value(find_model(word, root)) == 100.0
    said = "transloom: the model of the run a is the average of steps 80, 120; made anew, it was of steps 40, 80\n"
    assert capsys.readouterr().err == said


def test_a_model_that_can_not_be_made_anew_is_refused_with_what_to_do(root: Path) -> None:
    folder = root / "runs" / "a"
    find_model("a", root)
    end_training(folder, 40, 80, 120)
    with pytest.raises(UserError, match="step_00000120") as refusal:
        find_model("a", root)
    assert f"transloom train resume={folder} train.max_steps=" in str(refusal.value)
    assert f"{folder / 'model'} is of steps 40, 80" in str(refusal.value)


def test_a_model_without_its_snapshots_is_used_where_it_is_the_right_one(root: Path) -> None:
    find_model("a", root)
    shutil.rmtree(root / "runs" / "a" / "weights")
    assert value(find_model("a", root)) == 60.0


def test_an_owner_is_not_disturbed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "runs" / "a"
    find_model("a", root)
    snapshot(folder, 120)
    (folder / TRAINING_FILE).unlink()
    with locked(folder):
        assert value(find_model("a", root)) == 60.0
        assert "steps 40, 80; the run has newer snapshots, but is in use by process " in capsys.readouterr().err
    assert value(find_model("a", root)) == 100.0
    assert capsys.readouterr().err.endswith("; its training has not ended\n")


def test_a_training_that_has_not_ended_has_a_model_of_its_snapshots(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = root / "runs" / "a"
    (folder / TRAINING_FILE).unlink()
    spool = MetricLog(folder / "metrics.jsonl")
    for step in (50, 100):
        tokens = {"train/source_tokens": 10.0 * step, "train/target_tokens": 20.0 * step}
        spool.append(tokens | {"train/seconds": step / 10}, step)
    spool.append({"validation/bleu": 3.0, "validation/loss": 2.0}, 40)
    spool.close()
    assert value(find_model("a", root)) == 60.0
    said = "transloom: the model of the run a is the average of steps 40, 80; its training has not ended\n"
    assert capsys.readouterr().err == said
    run = run_with(root)
    so_far = {"step": 80, "seconds": 8.0, "source_tokens": 800, "target_tokens": 1600, "reason": None}
    assert so_far.items() <= training_of(run).items()
    assert [one["step"] for one in training_of(run)["validations"]] == [40]
    assert steps_of_model(run_with(root, "train.average=1", "train.average_of=best")) == [40], "80 is not validated"


def run_with(root: Path, *words: str) -> Run:
    return Run("a", root / "runs" / "a", load_config(["train.average=2", *words]))


def test_a_run_without_snapshots_is_to_train_on(root: Path) -> None:
    folder = root / "runs" / "a"
    shutil.rmtree(folder / "weights")
    (folder / TRAINING_FILE).unlink()
    with pytest.raises(UserError, match="no snapshot") as refusal:
        find_model("a", root)
    assert f"transloom train resume={folder}" in str(refusal.value) and "evaluate" not in str(refusal.value)
    assert "step 40 (train.validate_every)" in str(refusal.value)
    with locked(folder):
        (folder / LOCK_FILE).write_text("process 1 on another-machine")
        with pytest.raises(UserError, match=r"in use by process 1 on another-machine: wait for it"):
            find_model("a", root)


def test_a_copied_model_says_its_steps(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = root / "copy"
    shutil.copytree(find_model("a", root), copy)
    capsys.readouterr()
    assert find_model(str(copy), root) == copy
    assert capsys.readouterr().err == f"transloom: the model {copy} is the average of steps 40, 80\n"
    assert read_json(copy / "config.json")["steps"] == [40, 80]


def test_a_result_says_how_far_the_training_had_come_and_which_search_it_is_of(root: Path) -> None:
    folder = root / "runs" / "a"
    (folder / TRAINING_FILE).unlink()
    run, greedy = run_with(root), run_with(root, "decode=greedy")
    assert not is_evaluated(run) and not (folder / "model").exists(), "asking makes no model"
    export_model(run)
    assert not is_evaluated(run)
    for searched in (run, greedy):
        evaluation = evaluation_folder(searched)
        assert evaluation is not None
        evaluation.mkdir(parents=True)
        write_json(evaluation / "result.json", {"steps_averaged": [40, 80]})
    assert is_evaluated(run) and is_evaluated(greedy)
    result, other = kept_result(run), kept_result(greedy)
    assert (result["step"], result["training_ended"], result["is_own_search"]) == (80, False, True)
    assert (other["search"], other["is_own_search"]) == ("beam 1, length penalty 0", False)
    end_training(folder, 40, 80)  # it had only been killed before it could say so
    assert kept_result(run)["training_ended"]
    assert read_json(Path(result["folder"]) / "result.json")["training_ended"], "compare reads it there"
    snapshot(folder, 120)
    end_training(folder, 40, 80, 120)
    assert not is_evaluated(run), "its model should be another one"


def test_a_run_that_begins_with_another_keeps_its_identity_when_that_one_s_model_is_made(root: Path, capsys) -> None:
    stage = Stage(root, {"key": "1"}, True, 0.0)
    file = root / "runs" / "a" / CONFIG_FILE
    file.write_text(file.read_text().replace("dtype: auto", "dtype: fp32"))

    def key() -> str:
        return identity(load_config([f"output_dir={root}", "train.initial=a"]), Prepared(stage, stage, stage))

    capsys.readouterr()
    first = key()  # "a" was trained, and never evaluated
    assert "average of steps" not in capsys.readouterr().err
    assert first == key() and value(find_model("a", root)) == 60.0
    snapshot(root / "runs" / "a", 120)
    end_training(root / "runs" / "a", 40, 80, 120)
    later = key()  # it trained on: other weights, another run
    assert later != first and later == key() and value(root / "runs" / "a" / "model") == 100.0
