"""The model folder of a run: the average of its snapshots, made again when they are others."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from transloom.jobs.config.compose import load_config
from transloom.jobs.runs.workspace import Run
from transloom.jobs.training.evaluate import export_model
from transloom.pipeline.data.tokenizer import TokenizerConfig, train_tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import write_json
from transloom.pipeline.run_folder import PREPARED_FILE, TRAINING_FILE
from transloom.pipeline.train.checkpoint import save_weights


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that averages its last two snapshots; of steps 10 and 20, with weights of 1 and 2."""
    (tmp_path / "text").write_bytes(b"Ein Hund rennt.\n" * 20)
    train_tokenizer([tmp_path / "text"], TokenizerConfig(vocab_size=300), tmp_path)
    write_json(tmp_path / PREPARED_FILE, {"tokenizer": str(tmp_path), "shards": str(tmp_path / "gone")})
    write_json(tmp_path / TRAINING_FILE, {"validations": [{"step": step, "bleu": step} for step in (10, 20)]})
    run = Run("mine", tmp_path, load_config(["train.average=2", "train.average_of=last"]))
    for step, value in ((10, 1.0), (20, 2.0)):
        snapshot(run, step, value)
    return run


def snapshot(run: Run, step: int, value: float) -> None:
    save_weights(run.folder / "weights", step, {"w": torch.full((3,), value)}, keep_last=9)


def exported(run: Run) -> float:
    """The one value of the model's weights."""
    return load_file(export_model(run) / "model.safetensors")["w"].unique().item()


def test_it_is_the_mean_and_is_made_once(run: Run) -> None:
    assert exported(run) == 1.5
    file = run.folder / "model" / "model.safetensors"
    written_at = file.stat().st_mtime_ns
    assert exported(run) == 1.5
    assert file.stat().st_mtime_ns == written_at


def test_weights_that_were_trained_again_make_another_model(run: Run) -> None:
    assert exported(run) == 1.5
    snapshot(run, 20, 4.0)  # the same step, after the run had gone back
    assert exported(run) == 2.5


def test_a_model_outlives_its_snapshots(run: Run) -> None:
    assert exported(run) == 1.5
    shutil.rmtree(run.folder / "weights")
    assert exported(run) == 1.5
    shutil.rmtree(run.folder / "model")
    with pytest.raises(UserError, match="step_00000010"):
        export_model(run)
