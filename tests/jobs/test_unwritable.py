"""Folders that can't be written: those of a command's results, and those of its Ray."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command import TINY
from disks import remount, small_disk

from transloom.jobs.__main__ import main
from transloom.jobs.ray_cluster import session
from transloom.jobs.ray_cluster.session import RAY_BYTES, temp_folder_trouble
from transloom.pipeline.disk import refuse_unwritable
from transloom.pipeline.errors import UserError
from transloom.pipeline.train.checkpoint import newest_checkpoint, save_checkpoint, save_weights
from transloom.pipeline.train.optimizer import EngineState


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise AssertionError("Ray must not start")

    monkeypatch.setattr(session, "_init_ray", start)


@pytest.fixture
def short_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Short enough for Ray's sockets."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("job", ["prepare", "train", "run", "race"])
def test_a_read_only_output_folder_ends_a_command_before_ray_starts(job, tmp_path, no_ray, capsys):
    words = TINY if job != "race" else ["experiment=attention_vs_recurrence"]
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        remount(disk, "ro")
        assert main([job, *words, f"output_dir={disk / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert f"{disk / 'out'} can't be written" in said and "output_dir" in said and "Traceback" not in said


def test_an_output_folder_that_is_another_users(tmp_path):
    if os.geteuid():
        pytest.skip("another user's folder needs root")
    tmp_path.chmod(0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(UserError, match="output_dir") as refused:
            refuse_unwritable(tmp_path / "out")
    finally:
        os.seteuid(0)
    assert str(tmp_path / "out") in str(refused.value)


def test_an_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="output_dir"):
        refuse_unwritable(tmp_path / "out")


def test_an_output_folder_that_can_be_written_stays_empty(tmp_path):
    refuse_unwritable(tmp_path / "new" / "out")
    assert list((tmp_path / "new" / "out").iterdir()) == []


def test_a_checkpoint_on_a_disk_that_became_read_only(tmp_path):
    state = EngineState({"weights/x": torch.ones(4)}, {})
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        save_checkpoint(disk / "checkpoints", 1, state, {}, {}, 2)
        remount(disk, "ro")
        with pytest.raises(UserError, match="output_dir") as refused:
            save_checkpoint(disk / "checkpoints", 2, state, {}, {}, 2)
        assert f"{disk}/checkpoints/step_00000002 can't be written" in str(refused.value)
        with pytest.raises(UserError, match="output_dir"):
            save_weights(disk / "weights", 2, state.tensors, keep_last=1)
        assert newest_checkpoint(disk / "checkpoints") == disk / "checkpoints" / "step_00000001"


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_full_temporary_folder_ends_a_command_before_ray_starts(
    variable, short_folder, tmp_path, no_ray, capsys, monkeypatch
):
    with small_disk(short_folder, 2 * RAY_BYTES) as disk:
        monkeypatch.setenv(variable, str(disk))
        assert temp_folder_trouble() is None
        (disk / "rest").write_bytes(bytes(2 * RAY_BYTES - (64 << 10)))
        assert main(["prepare", *TINY, f"output_dir={tmp_path}"]) == 2
        (disk / "rest").unlink()
    said = capsys.readouterr().err
    assert f"transloom: {disk}" in said and f"set {variable} " in said and "Traceback" not in said


def test_a_read_only_temporary_folder(short_folder, monkeypatch):
    with small_disk(short_folder, 2 * RAY_BYTES) as disk:
        monkeypatch.setenv("RAY_TMPDIR", str(disk))
        remount(disk, "ro")
        message = temp_folder_trouble() or ""
        assert message.startswith(f"{disk}: ") and "RAY_TMPDIR" in message
