"""What a run takes of its initial model into its folder, what it says, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from language_folder import write_language_model, write_tokenizer
from safetensors.torch import load_file, save_file

from transloom.jobs.config.compose import load_config
from transloom.jobs.runs.workspace import Run
from transloom.jobs.training.initial import bring_initial, trained_parameters
from transloom.pipeline.errors import UserError
from transloom.pipeline.run_folder import CHECKPOINTS_FOLDER
from transloom.pipeline.train.checkpoint import load_weights, save_checkpoint
from transloom.pipeline.train.optimizer import EngineState

WORDS = ("experiment=language_model/demo", "batch.tokens=1024", "batch.micro_tokens=512")


@pytest.fixture
def gpt(tmp_path: Path) -> Path:
    write_language_model(tmp_path / "gpt")
    return tmp_path / "gpt"


def run_of(gpt: Path, *words: str, tokenizer: Path | None = None) -> Run:
    folder = gpt.parent / "runs" / "tuned"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prepared.json").write_text(json.dumps({"tokenizer": str(tokenizer or gpt)}))
    return Run("tuned", folder, load_config([*WORDS, f"train.initial={gpt}", f"output_dir={gpt.parent}", *words]))


def brought(run: Run) -> dict[str, torch.Tensor]:
    return load_weights(run.folder / "initial" / "step_00000000")


def test_a_hugging_face_folder_is_taken_whole(gpt, capsys):
    run = run_of(gpt)
    bring_initial(run)
    weights = brought(run)
    theirs = load_file(gpt / "model.safetensors")
    tokens = len(weights["embedding.weight"])
    assert torch.equal(weights["embedding.weight"], theirs["transformer.wte.weight"][:tokens])
    assert torch.equal(weights["layers.1.feed_forward.outer.weight"], theirs["transformer.h.1.mlp.c_proj.weight"].T)
    assert "random" not in capsys.readouterr().out and trained_parameters(run) is None


def _changed(change):
    def damage(gpt: Path) -> None:
        tensors = load_file(gpt / "model.safetensors")
        change(tensors)
        save_file(tensors, gpt / "model.safetensors")

    return damage


def _pickle(gpt: Path) -> None:
    (gpt / "model.safetensors").unlink()
    torch.save({}, gpt / "pytorch_model.bin")


NORM = "transformer.ln_f.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_changed(lambda t: t.update({NORM: torch.ones(31)})), r"ln_f\.weight' has the shape \(31,\)"),
        (_changed(lambda t: t.pop(NORM)), r"ln_f\.weight' is missing"),
        (_pickle, r"pytorch_model\.bin is a pickle"),
        (lambda gpt: (gpt / "tokenizer.json").unlink(), r"no tokenizer at .*gpt"),
    ],
)
def test_a_folder_that_does_not_hold_together_is_refused_and_nothing_is_written(gpt, damage, message):
    whole = Path(shutil.copytree(gpt, gpt.parent / "whole"))
    run = run_of(gpt, tokenizer=whole)
    damage(gpt)
    with pytest.raises(UserError, match=message):
        bring_initial(run)
    assert not (run.folder / "initial").exists()


def test_another_tokenizer_is_refused_unless_the_embeddings_begin_anew(gpt):
    other = gpt.parent / "other"
    write_tokenizer(other)
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text() + "\n")
    words = ("tokenizer.kind=file", f"tokenizer.path={other}")
    with pytest.raises(UserError, match=r"^train\.initial: .*initial_embeddings=false"):
        bring_initial(run_of(gpt, *words, tokenizer=other))
    run = run_of(gpt, *words, "train.initial_embeddings=false", tokenizer=other)
    bring_initial(run)
    assert "embedding.weight" not in brought(run)
    with pytest.raises(UserError, match=r"^train\.frozen_layers: 1 would freeze embedding\.weight"):
        shutil.rmtree(run.folder)
        bring_initial(run_of(gpt, *words, "train.initial_embeddings=false", "train.frozen_layers=1", tokenizer=other))


def test_what_is_trained_is_counted(gpt, capsys):
    run = run_of(gpt, "train.lora.rank=2", "train.lora.layers=attention")
    bring_initial(run)
    adapters = 2 * 2 * ((32 + 96) + (32 + 32))  # layers x rank x (query_key_value, output)
    found = trained_parameters(run)
    assert found is not None and found[0] == adapters
    plain = sum(tensor.numel() for tensor in brought(run).values())
    assert found[1] == plain + adapters
    assert f"trained: {adapters:,} of {plain + adapters:,} parameters" in capsys.readouterr().out


def test_a_run_that_goes_on_needs_the_initial_model_only_where_weights_are_frozen(gpt):
    for words, is_brought in (((), False), (("train.frozen_layers=1",), True)):
        run = run_of(gpt, *words)
        tensors = {f"{kind}/x": torch.zeros(1) for kind in ("weights", "exp_avg", "exp_avg_sq")}
        save_checkpoint(run.folder / CHECKPOINTS_FOLDER, 1, EngineState(tensors, {}), {}, {}, keep=1)
        bring_initial(run)
        assert (run.folder / "initial").exists() is is_brought


def test_more_frozen_layers_than_there_are_are_refused_by_the_key(gpt):
    with pytest.raises(UserError, match=r"^train\.frozen_layers: 3 layers .* the model has 2"):
        run_of(gpt, "train.frozen_layers=3")
