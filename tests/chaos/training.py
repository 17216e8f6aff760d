"""The trainings that faults are injected into: started, watched, and compared with one that nothing disturbs."""

import json
import math
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from command import ROOT, Command, Outcome
from runs import REPEATABLE, checkpoint_state, differing, losses, trajectory

from chaos.report import doubled_or_missing, stalls
from chaos.servers import is_alive
from transloom.pipeline.files import read_json
from transloom.pipeline.tracking.spool import read_points

HOOKS = ROOT / "tests" / "chaos" / "hooks"
SECONDS = 600.0  # for one command, and for a training to go on
NO_RAY = "Ray did not start"
STEPS, EVERY = 100, 20
WHOLE = "whole"
# Seconds of preparation, then steps of a few hundredths of a second.
WORDS = (
    "corpus.phrasebook_pairs=2000",
    "corpus.held_out=20",
    "tokenizer.vocab_size=500",
    "model=tiny",
    "batch.tokens=1024",
    "batch.micro_tokens=256",
    "schedule.warmup_steps=20",
    "schedule.peak_learning_rate=0.005",
    "train.log_every=1",
    "decode=greedy",
    "engine=torch",
    "precision=fp32",
    "cluster.num_workers=2",
    "tracking.system_metrics=false",
)


@dataclass
class Place:
    """Where all commands of a chaos run are given; the corpus in its outputs/ is prepared once.

    Attributes:
        steps, every: of a training; between its checkpoints.
        step_seconds, save_seconds: of a step and of a checkpoint in the undisturbed training.
        commands: what was started and may have to be ended.
    """

    folder: Path
    rng: random.Random
    steps: int = STEPS
    every: int = EVERY
    step_seconds: float = 0.05
    save_seconds: float = 0.1
    commands: list[Command] = field(default_factory=list)

    def run(self, name: str) -> Path:
        return self.folder / "outputs" / "runs" / name

    @property
    def samples(self) -> Path:
        return self.folder / "samples"


def start(
    place: Place,
    name: str,
    *words: str,
    faults: Mapping[str, Any] | None = None,
    added: Mapping[str, str] | None = None,
    steps: int = 0,
) -> Command:
    """`transloom train name=<name>` with the words of all; `tracking=off` unless they say otherwise."""
    folder = place.run(name)
    if not folder.exists() and name != WHOLE and (products := place.run(WHOLE) / "products.json").exists():
        folder.mkdir(parents=True)
        shutil.copy(products, folder)  # measured once: another rounding would be another trajectory
    total = steps or place.steps
    more = (f"train.max_steps={total}", f"train.validate_every={total}", f"train.checkpoint_every={place.every}")
    tracking = () if any(word.startswith("tracking.uri=") for word in words) else ("tracking=off",)
    own = {word.partition("=")[0] for word in words}
    common = [word for word in (*WORDS, *more, *tracking) if word.partition("=")[0] not in own]
    return _start(place, name, faults, added, *common, f"name={name}", *words)


def resume(place: Place, name: str, *words: str, faults: Mapping[str, Any] | None = None) -> Command:
    """`transloom train resume=<name>`."""
    return _start(place, name, faults, None, f"resume={name}", *words)


def _start(
    place: Place, name: str, faults: Mapping[str, Any] | None, added: Mapping[str, str] | None, *words: str
) -> Command:
    (place.run(name) / "progress.json").unlink(missing_ok=True)
    environment = dict(added or {})
    if faults:
        environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HOOKS)]), "TRANSLOOM_CHAOS": json.dumps(faults)}
    return _give(place, "train", *words, added=environment)


def sync(place: Place, name: str, uri: str) -> Command:
    """`transloom sync <name>`: uploads what MLflow lacks of a finished run."""
    return _give(place, "sync", name, f"tracking.uri={uri}", added={})


def _give(place: Place, *words: str, added: Mapping[str, str]) -> Command:
    command = Command(place.folder, *words, added=added)
    place.commands.append(command)
    return command


def end_commands(place: Place) -> None:
    """Kills what is left of the commands."""
    for command in place.commands:
        command.kill()
    place.commands.clear()


def finish(command: Command, code: int = 0) -> Outcome:
    """Waits for a command's end, which must be with this exit code and without a traceback."""
    outcome = command.wait(SECONDS)
    assert outcome.code == code, f"exit code {outcome.code}, not {code}: {last_words(outcome)}"
    assert "Traceback" not in outcome.err, f"a traceback: {last_words(outcome)}"
    return outcome


def train(place: Place, name: str, *words: str, faults: Mapping[str, Any] | None = None, steps: int = 0) -> None:
    """A training from its start to its end that nothing disturbs, at a third attempt where Ray does not come up on a
    busy machine."""
    for is_last in (False, False, True):
        try:
            finish(start(place, name, *words, faults=faults, steps=steps))
            return
        except AssertionError as error:
            if is_last or NO_RAY not in str(error):
                raise


def last_words(outcome: Outcome) -> str:
    return (outcome.err.strip() or outcome.out.strip())[-500:]


def make_reference(place: Place) -> None:
    """Trains the undisturbed run, unless the place has it, and measures its steps and checkpoints."""
    folder = place.run(WHOLE)
    if not (folder / "training.json").exists():
        place.samples.joinpath(WHOLE).mkdir(parents=True, exist_ok=True)
        train(place, WHOLE, faults={"record": str(place.samples / WHOLE)})
    place.step_seconds = read_json(folder / "training.json")["seconds"] / place.steps
    place.save_seconds = max(0.02, median(stalls(step_times(folder), place.every)))


def step_times(folder: Path) -> list[tuple[int, float, float]]:
    """(step, wall-clock seconds, seconds of training) of each report."""
    return [
        (point.step, point.time_ms / 1000, point.value) for point in read_points(folder) if point.key == "train/seconds"
    ]


class NotStarted(AssertionError):
    """Ray did not come up on a busy machine, before any fault was injected."""


def wait_for_step(place: Place, command: Command, name: str, step: int) -> list[psutil.Process]:
    """Waits for a moment in the midst of the step after this one; the training's workers, found before."""
    file = place.run(name) / "progress.json"
    try:
        _wait(command, lambda: file.exists(), "its first step")
    except AssertionError as error:
        raise (NotStarted if NO_RAY in str(error) else AssertionError)(error) from None
    workers = command.workers()
    _wait(command, lambda: _progress(file) >= step, f"step {step}")
    time.sleep(place.rng.uniform(0, place.step_seconds))
    assert not (file.parent / "training.json").exists(), "the fault came too late: the training had ended"
    return workers


def wait_for_gone(workers: list[psutil.Process], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while left := [worker.pid for worker in workers if is_alive(worker)]:
        assert time.monotonic() < deadline, f"workers of before still live: {left}"
        time.sleep(0.02)


def wait_for_recovery(command: Command, folder: Path, workers: list[psutil.Process]) -> None:
    """Waits until the workers of before are gone and others have taken a step."""
    _wait(command, lambda: not any(is_alive(worker) for worker in workers), "the end of the workers of before")
    gone_at, file = time.time(), folder / "progress.json"
    _wait(command, lambda: _written(file) > gone_at and _progress(file) > 0, "the first step after the fault")


def _wait(command: Command, is_there: Any, what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_there():
        if command.process.poll() is not None:
            if is_there():
                return
            outcome = command.wait(SECONDS)
            raise AssertionError(f"ended with exit code {outcome.code} before {what}: {last_words(outcome)}")
        assert time.monotonic() < deadline, f"{what} did not come within {SECONDS:g} s"
        time.sleep(0.004)


def _progress(file: Path) -> int:
    try:
        return int(json.loads(file.read_bytes()).get("step", 0))
    except (OSError, ValueError):
        return 0


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime  # by the kernel's clock, which no fault sets
    except OSError:
        return 0.0


def logged(place: Place, name: str) -> int:
    """The last step that was logged."""
    return max(losses(place.run(name)), default=0)


def from_step(place: Place, name: str) -> int:
    """Where the last attempt at a finished training went on from."""
    return int(read_json(place.run(name) / "training.json")["this_attempt"]["from_step"])


def check_same(place: Place, name: str, whole: str = WHOLE, steps: int = 0) -> None:
    """
    Raises:
        AssertionError: the run's weights, optimizer state or losses are not those of the undisturbed one, to the bit.
    """
    found, expected = place.run(name), place.run(whole)
    at = steps or place.steps
    if names := differing(checkpoint_state(found, at), checkpoint_state(expected, at)):
        raise AssertionError(f"not bit-identical at step {at}: {names[:3]} and {max(0, len(names) - 3)} others")
    of_whole, of_run = trajectory(expected), trajectory(found)
    for metric in REPEATABLE:
        difference = doubled_or_missing(of_whole[metric], of_run[metric])
        assert not difference, f"{metric}: {difference}"


def check_close(place: Place, name: str, tolerance: float) -> float:
    """The largest relative difference of a loss from the undisturbed run's.

    Raises:
        AssertionError: more than the tolerance, or a step has no loss.
    """
    expected, found = losses(place.run(WHOLE)), losses(place.run(name))
    assert found.keys() == expected.keys(), f"steps without a loss: {sorted(expected.keys() ^ found.keys())[:5]}"
    largest = max(abs(found[step] - loss) / abs(loss) for step, loss in expected.items())
    assert math.isfinite(largest) and largest <= tolerance, f"a loss differs by {largest:.2g}, more than {tolerance:g}"
    return largest


def samples(folder: Path) -> Counter[tuple[int, int, str]]:
    """How often each micro-batch, (epoch, index of the step, hash), was trained on."""
    lines = [line for file in folder.glob("*.jsonl") for line in file.read_bytes().splitlines()]
    return Counter(tuple(json.loads(line)) for line in lines)


def check_points(store: str, place: Place, name: str, whole: Path | None = None) -> None:
    """
    Args:
        store: MLflow's address of the database.
        whole: the folder of the run whose points must be there; by default the run's own spool says.
    Raises:
        AssertionError: the run's points in MLflow are not each there once, or there is not one run of the name.
    """
    from mlflow import MlflowClient

    client = MlflowClient(store)
    found = client.search_runs([one.experiment_id for one in client.search_experiments()])
    ids = [run.info.run_id for run in found if run.info.run_name == name]
    assert len(ids) == 1, f"MLflow has {len(ids)} runs {name}"
    for metric, points in trajectory(whole or place.run(name)).items():
        history = client.get_metric_history(ids[0], metric)
        difference = doubled_or_missing(points, [(point.step, point.value) for point in history])
        assert points and not difference, f"{metric} in MLflow: {difference or 'no points'}"
