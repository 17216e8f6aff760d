"""A run that goes on with another's weights has them whole or not at all, and leaves the other as it was."""

import os

import pytest
import torch

from transloom.pipeline.errors import UserError
from transloom.pipeline.train import inherit as module
from transloom.pipeline.train.checkpoint import (
    average_weights,
    list_weights,
    newest_checkpoint,
    save_checkpoint,
    save_weights,
)
from transloom.pipeline.train.inherit import inherit
from transloom.pipeline.train.optimizer import EngineState


def make_run(folder, steps=(10, 20, 30)):
    for step in steps:
        tensors = {"weights/w": torch.full((100,), float(step))}
        save_checkpoint(folder / "checkpoints", step, EngineState(tensors, {}), {"step": step}, {}, keep=2)
        save_weights(folder / "weights", step, {"w": torch.full((100,), float(step))}, keep_last=3)
    return folder


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("can_link", [True, False])
def test_a_run_begins_with_the_checkpoint_and_the_snapshots_up_to_it(tmp_path, monkeypatch, can_link):
    if not can_link:

        def refuse(*_):
            raise OSError("this disk has no links")

        monkeypatch.setattr(module.os, "link", refuse)
    parent, child = make_run(tmp_path / "parent"), tmp_path / "child"
    before = content(parent)
    (child / "checkpoints" / "step_00000020.tmp").mkdir(parents=True)  # of a killed process
    inherit(parent, 20, child)
    assert newest_checkpoint(child / "checkpoints") == child / "checkpoints" / "step_00000020"
    assert [path.name for path in list_weights(child / "weights")] == ["step_00000010", "step_00000020"]
    for name in ("checkpoints/step_00000020", "weights/step_00000010", "weights/step_00000020"):
        assert content(child / name) == content(parent / name)
    assert average_weights(list_weights(child / "weights"))["w"][0] == 15.0

    # The child goes on and removes what it has; the parent keeps its own.
    make_run(child, (30, 40))
    inherit(parent, 20, child)
    names = sorted(path.name for path in (child / "checkpoints").glob("step_*"))
    assert names == ["step_00000030", "step_00000040"]
    assert content(parent) == before


@pytest.mark.parametrize("num_renames", [0, 1, 2])
def test_a_kill_in_its_midst_leaves_nothing_half(tmp_path, monkeypatch, num_renames):
    parent, child = make_run(tmp_path / "parent"), tmp_path / "child"
    rename, done = os.rename, []

    def die(*paths):
        if len(done) == num_renames:
            raise KeyboardInterrupt
        done.append(paths)
        rename(*paths)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.os, "rename", die)
        inherit(parent, 20, child)
    assert newest_checkpoint(child / "checkpoints") is None
    inherit(parent, 20, child)
    assert newest_checkpoint(child / "checkpoints") == child / "checkpoints" / "step_00000020"
    assert len(list_weights(child / "weights")) == 2
    assert not list(child.rglob("*.tmp*"))


def test_a_damaged_or_missing_checkpoint_is_refused(tmp_path):
    parent, child = make_run(tmp_path / "parent"), tmp_path / "child"
    with pytest.raises(UserError, match=r"step_00000010/manifest.json is missing"):  # only the last two are kept
        inherit(parent, 10, child)
    file = parent / "checkpoints" / "step_00000020" / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="is damaged: its SHA-256"):
        inherit(parent, 20, child)
    assert not child.exists()
