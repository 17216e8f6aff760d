"""Ray Tune's side of a sweep: it places the trials, and starts one that has died again. Who comes next and who is to
stop is the study's to say.
"""

import logging
import math
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from transloom.jobs.config.compose import read_config
from transloom.jobs.ray_cluster.patches import MANY_PROCESSES, without_messages
from transloom.jobs.runs.stopping import Terminated, on_sigterm, watched
from transloom.jobs.runs.workspace import Run
from transloom.jobs.sweep.trials import Trials
from transloom.jobs.training.attempts import train_in_attempts
from transloom.jobs.training.train import is_trained, refuse_too_long, refuse_unspaced_targets
from transloom.pipeline.disk import disk_trouble, is_disk_message
from transloom.pipeline.errors import UserError
from transloom.pipeline.run_folder import CONFIG_FILE, STOP_FILE
from transloom.pipeline.sweep.study import State
from transloom.pipeline.tasks.build import selecting_metric, token_columns
from transloom.pipeline.tasks.task import Metric
from transloom.pipeline.tracking.spool import read_points

POLL_SECONDS = 0.5
SECONDS_TO_STOP = 60.0  # for a trial's workers, to save a checkpoint and end

# Tune writes tables, tensorboard's files and backups of its own state; the study and the runs have it all.
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def validation_curve(folder: Path, metric: Metric, column: str) -> list[tuple[int, int, float]]:
    """(step, tokens of the column, score) of the validations of a run so far; those whose score is no number are left
    out. Tokens are logged every few steps: where a validation is not at one of them, those of the steps since are
    estimated."""
    scores, counted = f"validation/{metric.name}", f"train/{column}_tokens"
    series: dict[str, dict[int, float]] = {scores: {}, counted: {}}
    for point in read_points(folder):
        if point.key in series and math.isfinite(point.value):
            series[point.key][point.step] = point.value
    curve = []
    for step, score in sorted(series[scores].items()):
        known = max((one for one in series[counted] if one <= step), default=None)
        if known:
            curve.append((step, round(series[counted][known] * step / known), score))
    return curve


class TrialActor(tune.Trainable):
    """Drives one run's training at a time, in a process of its own that takes nothing but a byte of memory; each result
    is a validation. The workers have their own resources, which Ray Train asks for. The next trial is driven by the
    process of one that has ended, which has imported what a new one takes seconds to import."""

    def setup(self, config: dict[str, Any]) -> None:
        folder = Path(config["folder"])
        self._run = Run(folder.name, folder, read_config(folder / CONFIG_FILE))
        self._metric = selecting_metric(self._run.config.task, self._run.config.corpus)
        self._column = token_columns(self._run.config.task)[-1]
        self._is_sweep_to_stop = watched(Path(config["stop"]))
        (folder / STOP_FILE).write_bytes(b"")
        self._told = 0
        self._failure: str | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._train, name="training", daemon=True)
        self._thread.start()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._thread.join()  # an error here would count as a failure of the new trial
        self.setup(new_config)
        return True

    def _train(self) -> None:
        try:
            if not is_trained(self._run):
                refuse_too_long(self._run)
                refuse_unspaced_targets(self._run)
                train_in_attempts(self._run, validate_on_spare_cpus=False)  # what this trial leaves free is another's
        except UserError as error:
            self._failure = str(error)
        except BaseException as error:
            self._failure = disk_trouble(error, self._run.folder)
            self._error = None if self._failure else error

    def step(self) -> dict[str, Any]:
        """The next validation. The last one comes when the training has ended: there is nothing left to stop."""
        while True:
            self._thread.join(POLL_SECONDS)
            is_over = not self._thread.is_alive()
            if not is_over and self._is_sweep_to_stop():  # at every look: a trial that begins empties its own file
                self._stop()
            if self._error is not None:
                raise self._error  # Tune starts the trial again, which goes on from its newest checkpoint
            curve = validation_curve(self._run.folder, self._metric, self._column)[self._told :]
            if curve and (is_over or curve[0][0] < self._run.config.train.max_steps):
                self._told += 1
                step, tokens, score = curve[0]
                is_last = is_over and len(curve) == 1
                return {"step": step, "tokens": tokens, "score": score, "done": is_last, "failure": self._failure}
            if is_over:
                return {"step": 0, "tokens": 0, "score": 0.0, "done": True, "failure": self._failure}

    def cleanup(self) -> None:
        """Lets the workers of a trial that was stopped save a checkpoint and end, so that the run can be gone on with.
        What has not ended by then ends with this process."""
        if self._thread.is_alive():
            self._stop()
            self._thread.join(SECONDS_TO_STOP)

    def _stop(self) -> None:
        (self._run.folder / STOP_FILE).write_bytes(b"stopped by the sweep\n")


class StudySearcher(Searcher):
    """Tune's side of the study. Tune's own OptunaSearch would neither go on with the trials of a process that was
    killed, nor report by target tokens."""

    def __init__(self, trials: Trials, stop_file: Path) -> None:
        super().__init__(metric="score", mode="max" if trials.study.metric.higher_is_better else "min")
        self._of_study = trials
        self._stop_file = stop_file
        self.numbers: dict[str, int] = {}  # Tune's id → the study's number
        self.error: Exception | None = None  # ours, which Tune would take for a trial's

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.error:
            return Searcher.FINISHED
        found = self._of_study.begin()
        if found is None:
            return None if self._of_study.must_wait() else Searcher.FINISHED
        record, run = found
        self.numbers[trial_id] = record.number
        return {"folder": str(run.folder), "stop": str(self._stop_file)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        try:
            self._end(self.numbers[trial_id], result, error)
        except Exception as mistake:
            self.error = self.error or mistake

    def _end(self, number: int, result: dict[str, Any] | None, error: bool) -> None:
        if error or result is None:
            self._of_study.end(number, State.failed, "its process died, more often than cluster.max_failures")
        elif result["failure"] and is_disk_message(result["failure"]):  # the trial goes on when the sweep does
            self.error = UserError(result["failure"])
            self._of_study.let_end()
        elif result["failure"]:
            self._of_study.end(number, State.failed, result["failure"])
        elif number in self._of_study.stopped:
            self._of_study.end(number, State.stopped)
        elif not self._of_study.is_to_go_on(number):
            if result["tokens"]:
                self._of_study.study.report(number, result["tokens"], result["score"])
            self._of_study.end(number, State.finished)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is in its own database."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy for its own way of restoring, which is not used


class StudyScheduler(FIFOScheduler):
    """Asks the study after each validation whether the trial is to stop."""

    def __init__(self, searcher: StudySearcher, trials: Trials) -> None:
        super().__init__()
        self._searcher = searcher
        self._trials = trials

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = self._searcher.numbers[trial.trial_id]
        is_to_stop = self._trials.report(number, result["tokens"], result["score"])
        return TrialScheduler.STOP if is_to_stop else TrialScheduler.CONTINUE

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as the searcher


def run_trials(trials: Trials, at_once: int, max_failures: int, sweep: Run) -> None:
    """Runs the study's trials to its end.

    Args:
        at_once: trials under way together.
        max_failures: how often a trial's process may die; its workers may as often besides.
        sweep: whose folder also gets Tune's own files.
    Raises:
        Terminated: SIGTERM came. The trials under way have saved a checkpoint.
    """
    os.environ.update(QUIET)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what goes wrong with a trial is on the board
    stop_file = sweep.folder / STOP_FILE
    stop_file.write_bytes(b"")
    searcher = StudySearcher(trials, stop_file)
    tuner = tune.Tuner(
        tune.with_resources(TrialActor, tune.PlacementGroupFactory([{"memory": 1}])),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=StudyScheduler(searcher, trials),
            num_samples=-1,
            max_concurrent_trials=at_once,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            # A fresh name each time: it is not Tune that goes on with a sweep.
            name=f"attempt-{uuid.uuid4().hex}",
            storage_path=str(sweep.folder / "ray"),
            failure_config=tune.FailureConfig(max_failures=max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # checkpoints are the run's
            verbose=0,
        ),
    )

    def stop() -> None:
        trials.let_end()
        stop_file.write_bytes(b"SIGTERM\n")

    with _closing(trials), without_messages(MANY_PROCESSES), on_sigterm(stop):
        tuner.fit()
        if searcher.error:
            raise searcher.error
        if stop_file.stat().st_size:
            raise Terminated(
                f"the sweep {sweep.name} was stopped, its trials under way with a checkpoint each; "
                f"transloom sweep resume={sweep.name} goes on from there"
            )


@contextmanager
def _closing(trials: Trials) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        trials.close(error)
        raise
    trials.close(UserError("the sweep ended before it"))
