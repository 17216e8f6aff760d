"""What becomes of a run whose processes are killed or whose files are damaged: through the real command line."""

import os
import re
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from command import TINY, Command, transloom
from runs import STEPS, VALIDATION, checkpoint_state, differing, folder_of, losses, mlflow_runs, trajectory
from safetensors.torch import load_file

from transloom.pipeline.files import read_json

pytestmark = pytest.mark.slow


def test_a_run_stopped_killed_and_without_a_worker_ends_as_if_nothing_had_been(place, whole):
    words = ("run", *TINY, "name=disturbed")
    folder = folder_of(place, "disturbed")

    # SIGTERM saves the step, and the command exits with 143; also where its whole group gets it, as from `timeout`.
    command = Command(place, *words)
    command.wait_for(folder / "progress.json")
    assert set(command.listening()) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, "others on the network can get in"
    os.killpg(command.process.pid, signal.SIGTERM)
    outcome = command.wait()
    assert outcome.code == 143, outcome.said
    said = r"^transloom: the run disturbed was stopped, with the checkpoint step_0*(\d+); resume=disturbed goes on"
    found = re.search(said, outcome.err, re.MULTILINE)
    assert found, outcome.said
    stopped_at = int(found[1])
    assert 0 < stopped_at < 100, "the signal came too late"
    # The signal is noticed within a second; the step under way then is in the checkpoint.
    assert max(losses(folder)) <= stopped_at
    (run,) = [run for run in mlflow_runs(place) if run.info.run_name == "disturbed"]
    assert run.info.status == "KILLED"

    # It goes on from there, until the power fails at the next checkpoint.
    killed_at = stopped_at // 50 * 50 + 50
    command = Command(place, *words)
    command.wait_for(folder / "checkpoints" / f"step_{killed_at:08d}")
    assert f"going on from step_{stopped_at:08d}" in command.kill().out
    assert not (folder / "training.json").exists(), "the kill came too late"
    assert len(losses(folder)) >= 10

    # A worker is killed: with no retries left, the command says so.
    command = Command(place, *words, "cluster.max_failures=0")
    _kill_worker(command, folder, which=0)
    outcome = command.wait()
    assert outcome.code == 2, outcome.said
    assert outcome.err.startswith("transloom: training failed, and no retries are left (cluster.max_failures=0)")
    assert "the process of worker" in outcome.err and "Traceback" not in outcome.err

    # With some, training goes on by itself, from the newest checkpoint.
    command = Command(place, *words)
    _kill_worker(command, folder, which=1)
    outcome = command.wait()
    assert outcome.code == 0, outcome.said
    training = read_json(folder / "training.json")
    assert training["step"] == STEPS and training["this_attempt"]["from_step"] >= killed_at
    said = " ".join(outcome.out.split())
    assert re.search(r"Restart the process of worker .* the training goes on from step_00000(050|100)", said), said
    expected = folder_of(place, "whole")
    assert not differing(checkpoint_state(folder), checkpoint_state(expected))
    assert trajectory(folder) == trajectory(expected)
    model = "model/model.safetensors"
    assert not differing(load_file(folder / model), load_file(expected / model))

    # Into the same MLflow run, every point once.
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place}/outputs/mlflow.db")
    (after,) = [run for run in mlflow_runs(place) if run.info.run_name == "disturbed"]
    assert after.info.run_id == run.info.run_id and after.info.status == "FINISHED"
    for name, points in trajectory(expected).items():
        history = client.get_metric_history(after.info.run_id, name)
        assert sorted((point.step, point.value) for point in history) == points
    for name in VALIDATION:
        steps = Counter(point.step for point in client.get_metric_history(after.info.run_id, name))
        assert steps == {50: 1, 100: 1, 150: 1}


def _kill_worker(command: Command, folder: Path, which: int) -> None:
    """SIGKILL to one of the workers as soon as they take steps."""
    (folder / "progress.json").unlink(missing_ok=True)
    while len(workers := command.workers()) < 2:  # found before the steps begin to fly: it takes a moment
        assert command.process.poll() is None, command.wait().said
        time.sleep(0.2)
    command.wait_for(folder / "progress.json")
    workers[which].kill()
    assert not (folder / "training.json").exists(), "the kill came too late"


def test_a_resumed_run_goes_back_over_a_damaged_checkpoint(place, whole):
    expected, folder = folder_of(place, "whole"), folder_of(place, "longer")
    shutil.copytree(expected, folder)
    damaged = folder / "checkpoints" / "step_00000150" / "state.safetensors"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)

    outcome = transloom(place, "train", "resume=longer", "train.max_steps=180", "tracking=off")
    assert f"{damaged} is damaged" in outcome.out + outcome.err
    training = read_json(folder / "training.json")
    assert training["this_attempt"]["from_step"] == 100 and training["step"] == 180
    # What it went over again came out as before.
    weights = "weights/step_00000150/weights.safetensors"
    assert not differing(load_file(folder / weights), load_file(expected / weights))
    assert [step for step in sorted(losses(folder))] == list(range(5, 181, 5))
