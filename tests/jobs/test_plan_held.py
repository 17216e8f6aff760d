"""Plans held against runs: what a calibrated plan says of this machine, and what real workers then took.

Only on a machine that does nothing else, for seconds are compared: TRANSLOOM_QUIET_MACHINE=1.
"""

import dataclasses
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from command import Command
from runs import folder_of

from transloom.jobs.commands.plan import _found, calibrate_here, plan_of, training_of
from transloom.jobs.config.compose import load_config, with_absolute_paths
from transloom.pipeline.data.prepare import prepare
from transloom.pipeline.files import read_json
from transloom.pipeline.run_folder import PROGRESS_FILE
from transloom.pipeline.tracking.spool import read_points

WITHIN = 0.20
# (steps to train, of which so many are not yet measured, words): from 1 to 26 million parameters
SIZES = {
    "tiny": (600, 200, ["model=tiny", "batch.tokens=2048", "batch.micro_tokens=1024"]),
    "small": (140, 60, ["model=small", "batch.tokens=4096", "batch.micro_tokens=2048"]),
    "medium": (50, 20, ["model=small", "model.d_model=512", "model.d_ff=2048", "model.num_heads=8"]),
    "language model": (50, 20, ["experiment=language_model/demo", "tokenizer=byte_bpe_4k", "precision=auto"]),
}
COMMON = ["tokenizer=bpe_4k", "precision=bf16", "engine=zero1", "tracking=off", "train.log_every=10"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("TRANSLOOM_QUIET_MACHINE") or len(os.sched_getaffinity(0)) < 2,
        reason="compares seconds: needs two cores that nothing else uses, and TRANSLOOM_QUIET_MACHINE=1",
    ),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the phrasebook prepared."""
    place = tmp_path_factory.mktemp("held")
    config = load_config(COMMON)
    prepare(config.corpus, config.clean, config.tokenizer, place / "outputs")
    return place


def train(place: Path, name: str, words: list[str], skipped: int) -> tuple[float, int]:
    """Seconds of a step once `skipped` are behind, and the most that any worker had resident."""
    command = Command(place, "train", *words, f"name={name}")
    peaks: dict[int, int] = {}
    while command.process.poll() is None:
        # The last validation is the workers' own work where no CPU is left for it: plans are of training
        for worker in [] if is_validating(folder_of(place, name)) else command.workers():
            with suppress(OSError, IndexError, ValueError):
                status = Path(f"/proc/{worker.pid}/status").read_bytes()
                peaks[worker.pid] = int(status.split(b"VmHWM:")[1].split()[0]) * 1024
        time.sleep(0.2)
    assert command.wait().code == 0
    points = read_points(folder_of(place, name))
    seconds = {step: value for key, step, value, _ in points if key == "train/seconds"}
    last = max(seconds)
    return (seconds[last] - seconds[skipped]) / (last - skipped), max(peaks.values())


def is_validating(folder: Path) -> bool:
    try:
        return read_json(folder / PROGRESS_FILE).get("doing") == "validating"
    except (OSError, ValueError):
        return False


@pytest.mark.parametrize("size", SIZES)
def test_memory_and_step_of_one_and_two_workers_are_as_planned(size: str, place: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # a worker's threads follow from its CPUs
    steps, skipped, shape = SIZES[size]
    never = [f"train.{key}={steps}" for key in ("max_steps", "validate_every", "checkpoint_every")]
    words = [*COMMON, *shape, *never]
    config = with_absolute_paths(load_config([*words, "cluster.num_workers=2"]))
    training = training_of(config, _found(config))
    calibration = calibrate_here(config, training)
    print(f"{size}: {calibration}")
    off: dict[str, Any] = {}
    for workers in (1, 2):
        plan = plan_of(config, dataclasses.replace(training, workers=workers), {}, calibration)
        planned = next(one for one in plan["hardware"] if one["key"] == "cpu")
        name = f"{size}-{workers}"
        seconds, peak = train(place, name, [*words, f"cluster.num_workers={workers}"], skipped)
        off[f"{name} step"] = planned["step_seconds"]["total"] / seconds
        off[f"{name} memory"] = planned["memory_bytes"] / peak
        print(
            f"{name}: step planned {planned['step_seconds']['total']:.4f} s, took {seconds:.4f} s; memory planned "
            f"{planned['memory_bytes'] / 1e6:,.0f} MB, had {peak / 1e6:,.0f} MB"
        )
    assert {what: ratio for what, ratio in off.items() if abs(ratio - 1) > WITHIN} == {}, off
