"""Faults 2, 3, 8, 9, 10, 11 and 34: each injected for real."""

import ctypes
import logging
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from transloom.pipeline.errors import UserError
from transloom.pipeline.train import checkpoint
from transloom.pipeline.train.checkpoint import (
    average_weights,
    list_weights,
    load_checkpoint,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
    save_weights,
    snapshot_path,
    verify,
)
from transloom.pipeline.train.optimizer import EngineState

FILES = ["state.safetensors", "trainer.json", "manifest.json"]


def make_state(step: int, size: int = 1000) -> EngineState:
    tensors = {f"{kind}/w": torch.full((size,), float(step)) for kind in ("weights", "exp_avg", "exp_avg_sq")}
    return EngineState(tensors, {"adam_step": step})


def save(folder: Path, step: int, keep: int = 2, size: int = 1000) -> Path:
    return save_checkpoint(folder, step, make_state(step, size), {"step": step}, {"world_size": 2}, keep)


def assert_is_of(path: Path | None, step: int) -> None:
    assert path is not None and path.name == f"step_{step:08d}"
    state, trainer = load_checkpoint(path)
    assert trainer == {"step": step} and state.scalars == {"adam_step": step}
    assert all(torch.all(tensor == step) for tensor in state.tensors.values())


def test_what_was_saved_is_loaded(tmp_path):
    random_state = EngineState({"weights/a": torch.randn(3, 5), "exp_avg/a": torch.randn(3, 5)}, {"loss_scale": 0.5})
    path = save_checkpoint(tmp_path / "new" / "folder", 7, random_state, {"best": None, "x": [1.5]}, {"by": "me"}, 1)
    state, trainer = load_checkpoint(path)
    assert state.scalars == random_state.scalars and trainer == {"best": None, "x": [1.5]}
    assert state.tensors.keys() == random_state.tensors.keys()
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in random_state.tensors.items())
    manifest = verify(path)
    assert manifest["by"] == "me" and manifest["step"] == 7
    assert manifest["files"].keys() == {"state.safetensors", "trainer.json"}
    assert (path.parent / "latest").read_text() == "step_00000007\n"


def test_the_newest_are_kept_and_the_abandoned_future_is_removed(tmp_path):
    for step in (10, 20, 30, 40):
        save(tmp_path, step)
    assert [path.name for path in sorted(tmp_path.glob("step_*"))] == ["step_00000030", "step_00000040"]
    save(tmp_path, 35)  # the run went back to 30
    assert [path.name for path in sorted(tmp_path.glob("step_*"))] == ["step_00000030", "step_00000035"]
    save(tmp_path, 35)  # and came to the same step again
    assert_is_of(newest_checkpoint(tmp_path), 35)


def test_without_any_checkpoint_there_is_none(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "absent") is None
    (tmp_path / "step_00000010.tmp").mkdir()  # the first one, never finished
    assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_found(tmp_path, caplog, name, kept):
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: int(len(data) * kept)])
    with caplog.at_level(logging.WARNING):
        assert_is_of(newest_checkpoint(tmp_path), 10)
    assert str(path / name) in caplog.text
    with pytest.raises(UserError, match=name):
        load_checkpoint(path)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_found(tmp_path, caplog, name):
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    data = (path / name).read_bytes()
    draw = random.Random(0)
    places = range(len(data)) if len(data) < 1500 else [0, len(data) - 1, *draw.sample(range(len(data)), 200)]
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= draw.choice((0x01, 0x2A, 0x80, 0xFF))  # 0x2A makes a space a line feed
        (path / name).write_bytes(flipped)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = newest_checkpoint(tmp_path)
        assert found is not None and found.name == "step_00000010", f"byte {place} of {name}"
        assert str(path / name) in caplog.text
    (path / name).write_bytes(data)
    assert_is_of(newest_checkpoint(tmp_path), 20)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(tmp_path, name):
    save(tmp_path, 10)
    (save(tmp_path, 20) / name).unlink()
    assert_is_of(newest_checkpoint(tmp_path), 10)


def test_when_none_verifies_training_does_not_begin_again_unasked(tmp_path):
    for step in (10, 20):
        (save(tmp_path, step) / "state.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"damaged: step_00000020, step_00000010\. Restore .* step 0"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"step_00000010\n", b"\xff\x00"])
def test_the_pointer_is_not_trusted(tmp_path, content):
    save(tmp_path, 10)
    save(tmp_path, 20)
    (tmp_path / "latest").unlink()
    if content is not None:
        (tmp_path / "latest").write_bytes(content)
    assert_is_of(newest_checkpoint(tmp_path), 20)


def test_a_pointer_without_checkpoints_is_refused(tmp_path):
    os.rename(save(tmp_path, 10), tmp_path / "elsewhere")
    with pytest.raises(UserError, match="latest names one"):
        newest_checkpoint(tmp_path)


def run_child(code: str, *arguments: object) -> subprocess.Popen:
    preamble = "import os, signal, sys; from pathlib import Path; from test_checkpoint import *; import random, time\n"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(checkpoint.__file__).parents[2])])
    command = [sys.executable, "-c", preamble + code, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)


def test_sigkill_between_rename_and_pointer(tmp_path):
    save(tmp_path, 10)
    killer = "checkpoint.atomic_write = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
    child = run_child(killer + "save(Path(sys.argv[1]), 20)", tmp_path)
    assert child.wait(timeout=600) == -signal.SIGKILL
    assert (tmp_path / "latest").read_text() == "step_00000010\n"
    assert_is_of(newest_checkpoint(tmp_path), 20)
    save(tmp_path, 30)
    assert_is_of(newest_checkpoint(tmp_path), 30)


def test_sigkill_at_any_moment_of_a_checkpoint(tmp_path):
    """A child forks a writer that saves on and on, kills it at a random moment and looks at what is there."""
    code = """
draw, folder, last, unfinished = random.Random(0), Path(sys.argv[1]), 0, 0
for _ in range(40):
    read, write = os.pipe()
    writer = os.fork()
    if writer == 0:
        step = last
        while True:
            step += 1
            save(folder, step, size=300_000)
            os.write(write, b"1")
    os.read(read, 1)  # one is finished
    time.sleep(draw.uniform(0.0, 0.05))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    os.set_blocking(read, False)
    try:
        more = len(os.read(read, 1000))
    except BlockingIOError:
        more = 0
    os.close(read), os.close(write)
    names = [path.name for path in folder.iterdir()]
    unfinished += any(".tmp" in name for name in names)
    path = newest_checkpoint(folder)
    step = int(path.name.removeprefix("step_"))
    assert last + 1 + more <= step <= last + 2 + more, (last, more, names)  # the last one reported, or one more
    assert_is_of(path, step)
    assert all(verify(folder / name) for name in names if "." not in name and name != "latest")
    last = step
print(unfinished)
"""
    child = run_child("torch.set_num_threads(1)\n" + code, tmp_path)
    output, _ = child.communicate(timeout=600)
    assert child.returncode == 0
    assert int(output) >= 10  # most kills did hit a writer at work


def _mount_small_disk(folder: Path, bytes_: int) -> bool:
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={bytes_}".encode()) == 0


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    if not _mount_small_disk(disk, 200_000):
        pytest.skip("mounting a small disk needs root")
    try:
        folder = disk / "checkpoints"
        save(folder, 10, size=10_000)  # 120 kB
        before = sorted(path.name for path in folder.iterdir())
        for size in (10_000, 6_700, 6_600):  # full in the middle, close to the end, in the manifest
            with pytest.raises(UserError, match=r"step_00000020 could not be written: .*[Nn]o space left.*output_dir"):
                save(folder, 20, size=size)
            assert sorted(path.name for path in folder.iterdir()) == before
            assert_is_of(newest_checkpoint(folder), 10)
        with pytest.raises(UserError, match=r"step_00000020 could not be written"):
            save_weights(folder, 20, {"w": torch.zeros(30_000)}, keep_last=1)
        save(folder, 20, size=100)  # room again
        assert_is_of(newest_checkpoint(folder), 20)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_write_that_the_system_refuses_leaves_the_old_checkpoint(tmp_path):
    """The same for those who can't mount a disk: no file may grow beyond a limit."""
    save(tmp_path, 10, size=100)
    before = sorted(path.name for path in tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match=r"step_00000020 could not be written: .*too large"):
            save(tmp_path, 20, size=10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert_is_of(newest_checkpoint(tmp_path), 10)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("payload-ran",)


def test_a_pickle_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, 10)
    for name in ("state.safetensors", "trainer.json"):
        (path / name).write_bytes(pickle.dumps(Payload()))
        (path / "manifest.json").unlink()
        checkpoint._seal(path, {"step": 10})  # by one who knows how to seal it
        assert newest_checkpoint(tmp_path) == path
        with pytest.raises(UserError, match="does not hold"):
            load_checkpoint(path)
    assert not Path("payload-ran").exists()


def test_snapshots_are_kept_by_age_and_by_name(tmp_path):
    for step in range(1, 7):
        save_weights(tmp_path, step, {"w": torch.full((3,), float(step))}, keep_last=2, keep={1, 3})
    assert list_weights(tmp_path) == [snapshot_path(tmp_path, step) for step in (1, 3, 5, 6)]
    assert torch.equal(load_weights(snapshot_path(tmp_path, 3))["w"], torch.full((3,), 3.0))


def test_the_average_is_the_mean(tmp_path):
    torch.manual_seed(0)
    snapshots = [{"a": torch.randn(100), "b": torch.randn(2, 3)} for _ in range(5)]
    paths = [save_weights(tmp_path, i, one, keep_last=9) for i, one in enumerate(snapshots)]
    average = average_weights(paths)
    for name in ("a", "b"):
        mean = torch.stack([one[name].double() for one in snapshots]).mean(0).float()
        assert average[name].dtype == torch.float32
        assert torch.equal(average[name], mean)


def test_a_damaged_snapshot_is_not_averaged(tmp_path):
    paths = [save_weights(tmp_path, i, {"w": torch.ones(9)}, keep_last=9) for i in range(2)]
    save_file({"w": torch.full((9,), 1.5)}, paths[1] / "weights.safetensors")
    with pytest.raises(UserError, match=r"step_00000001/weights\.safetensors is damaged"):
        average_weights(paths)
    other = save_weights(tmp_path, 5, {"w": torch.ones(8)}, keep_last=9)
    with pytest.raises(UserError, match="different models"):
        average_weights([paths[0], other])
