"""A sweep's trials under Ray Tune: it places them and starts one that has died again; who comes next and who is to stop
is the study's to say. A trial is an ordinary run. Its driver's part (the lock, MLflow) is in the sweep's process: so a
trial that is ended early leaves nothing open.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from jobs.cluster import many_processes_are_meant
from jobs.config import Config, read_config
from jobs.report import open_tracker, report_training
from jobs.stopping import Terminated, on_sigterm, watched
from jobs.sweep_table import Board
from jobs.train import is_trained, launch_workers, refuse_too_long
from jobs.workspace import CONFIG_FILE, STOP_FILE, Run, only_owner, output_dir, run_for
from pipeline.data.prepare import Prepared
from pipeline.errors import UserError
from pipeline.spool import read_points
from pipeline.sweep.study import Record, State, Study
from pipeline.tracking import MlflowTracker
from pipeline.train.inherit import inherit

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


class Trials:
    """The trials of one study that are under way.

    Args:
        config_of: the configuration of a trial, without a name.
        parent: gives the MLflow id of the sweep's own run; None where it is not known yet.
        until: no trial begins any more at this reading of the monotonic clock.
        stop: what ends a trial early, for its tags.
    """

    def __init__(
        self,
        study: Study,
        prepared: Prepared,
        config_of: Callable[[Record], Config],
        parent: Callable[[], str | None],
        board: Board,
        until: float,
        stop: str,
    ) -> None:
        self.study = study
        self._prepared = prepared
        self._config_of = config_of
        self._parent = parent
        self._board = board
        self._until = until
        self._stop = stop
        self._open: dict[int, tuple[Run, MlflowTracker, ExitStack]] = {}
        self.stopped: set[int] = set()
        self._is_ending = False

    def begin(self) -> tuple[Record, Run] | None:
        """The next trial, its run locked and its page in MLflow open; None where no more are to begin, or none yet."""
        if time.monotonic() >= self._until or (record := self.study.ask()) is None:
            return None
        try:
            config = replace(self._config_of(record), name=record.run)
        except UserError as error:  # a combination that no corner of the space has
            self._board.ended(self.study.close(record.number, State.failed, 0.0, str(error)))
            return self.begin()
        if record.number in self.study.left and (output_dir(config) / "runs" / record.run / CONFIG_FILE).exists():
            config = replace(config, resume=record.run)  # also where it gets other workers now
        run = run_for(config, self._prepared)
        stack = ExitStack()
        stack.enter_context(only_owner(run))
        try:
            self._inherit(record, run)
        except UserError as error:
            stack.close()
            self._board.ended(self.study.close(record.number, State.failed, 0.0, str(error)))
            return self.begin()
        tracker = stack.enter_context(open_tracker(run, self._prepared))
        self._open[record.number] = run, tracker, stack
        self._tag(record, tracker)
        self._board.began(record, run)
        return record, run

    def must_wait(self) -> bool:
        """Whether none can begin before others have ended."""
        return self.study.must_wait and time.monotonic() < self._until

    def _inherit(self, record: Record, run: Run) -> None:
        """Gives a trial the weights that it is to go on with, of the step at which its parent ended."""
        if record.parent is not None:
            parent = run.folder.parent / self.study.records[record.parent].run
            share = run.config.train.max_steps // record.generation
            inherit(parent, share * (record.generation - 1), run.folder)

    def report(self, number: int, tokens: int, bleu: float) -> bool:
        """Notes a validation; whether the trial is to stop."""
        record = self.study.records[number]
        if tokens <= record.tokens:  # a trial that goes on tells all it had before
            return False
        is_to_stop = self.study.report(number, tokens, bleu)
        self._board.reported(record)
        if is_to_stop:
            self.stopped.add(number)
        return is_to_stop

    def end(self, number: int, state: State, failure: str | None = None) -> None:
        """Closes a trial's page and its lock, and only then notes in the study that it has ended: what a kill comes
        between is done again."""
        run, tracker, stack = self._open.pop(number)
        record = self.study.records[number]
        seconds = seconds_of(run)
        if state is State.finished and run.training:
            report_training(run, tracker)
        if state is State.stopped:
            tracker.set_tags({"sweep.stopped": f"{self._stop} at {record.tokens:,} target tokens"})
        if failure:
            tracker.set_tags({"sweep.failed": failure})
        tracker.set_tags({"sweep.state": state.value})
        self._tag(record, tracker)
        _close(stack, None if state in (State.finished, State.stopped) else UserError(failure or "failed"))
        self._board.ended(self.study.close(number, state, seconds, failure))

    def let_end(self) -> None:
        """From now on none begins, and one that ends before its end is to go on later."""
        self._is_ending, self._until = True, float("-inf")

    def is_to_go_on(self, number: int) -> bool:
        """Whether a trial that has ended is to go on when the sweep does."""
        return self._is_ending and self._open[number][0].training is None

    def close(self, error: BaseException) -> None:
        """Closes what is still open, when the sweep ends before them."""
        for _, _, stack in self._open.values():
            _close(stack, error)
        self._open.clear()

    def _tag(self, record: Record, tracker: MlflowTracker) -> None:
        tags = {f"sweep.{name}": str(value) for name, value in record.point.items()}
        tags["sweep.trial"] = str(record.number)
        if record.generation:
            tags |= {"sweep.generation": str(record.generation), "sweep.member": str(record.member)}
        if record.parent is not None:
            tags["sweep.parent"] = self.study.records[record.parent].run
        parent = self._parent()
        tracker.set_tags(tags | ({"mlflow.parentRunId": parent} if parent else {}))


def _close(stack: ExitStack, error: BaseException | None) -> None:
    """Leaves the contexts of a trial, as they would be left where `error` came."""
    stack.__exit__(type(error) if error else None, error, None)


def validation_curve(folder: Path) -> list[tuple[int, int, float]]:
    """(step, target tokens, BLEU) of the validations of a run so far. Tokens are logged every few steps: where a
    validation is not at one of them, those of the steps since are estimated."""
    series: dict[str, dict[int, float]] = {"validation/bleu": {}, "train/target_tokens": {}}
    for point in read_points(folder):
        if point.key in series:
            series[point.key][point.step] = point.value
    curve = []
    for step, bleu in sorted(series["validation/bleu"].items()):
        known = max((one for one in series["train/target_tokens"] if one <= step), default=None)
        if known:
            curve.append((step, round(series["train/target_tokens"][known] * step / known), bleu))
    return curve


def seconds_of(run: Run) -> float:
    """Of training so far, over all attempts."""
    return max((point.value for point in read_points(run.folder) if point.key == "train/seconds"), default=0.0)


class TrialActor(tune.Trainable):
    """Drives one run's training, in a process of its own that takes nothing but a byte of memory; each result is a
    validation. The workers have their own resources, which Ray Train asks for."""

    def setup(self, config: dict[str, Any]) -> None:
        folder = Path(config["folder"])
        self._run = Run(folder.name, folder, read_config(folder / CONFIG_FILE))
        self._is_sweep_to_stop = watched(Path(config["stop"]))
        self._told = 0
        self._failure: str | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._train, name="training", daemon=True)
        self._thread.start()

    def _train(self) -> None:
        try:
            if not is_trained(self._run):
                refuse_too_long(self._run)
                launch_workers(self._run, spare=0)  # what this trial leaves free is another's
        except UserError as error:
            self._failure = str(error)
        except BaseException as error:
            self._error = error

    def step(self) -> dict[str, Any]:
        """The next validation. The last one comes when the training has ended: there is nothing left to stop."""
        while True:
            self._thread.join(POLL_SECONDS)
            is_over = not self._thread.is_alive()
            if not is_over and self._is_sweep_to_stop():
                self._stop()
            if self._error is not None:
                raise self._error  # Tune starts the trial again, which goes on from its newest checkpoint
            curve = validation_curve(self._run.folder)[self._told :]
            if curve and (is_over or curve[0][0] < self._run.config.train.max_steps):
                self._told += 1
                step, tokens, bleu = curve[0]
                is_last = is_over and len(curve) == 1
                return {"step": step, "tokens": tokens, "bleu": bleu, "done": is_last, "failure": self._failure}
            if is_over:
                return {"step": 0, "tokens": 0, "bleu": 0.0, "done": True, "failure": self._failure}

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
        super().__init__(metric="bleu", mode="max")
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
        elif result["failure"]:
            self._of_study.end(number, State.failed, result["failure"])
        elif number in self._of_study.stopped:
            self._of_study.end(number, State.stopped)
        elif not self._of_study.is_to_go_on(number):
            if result["tokens"]:
                self._of_study.study.report(number, result["tokens"], result["bleu"])
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
        is_to_stop = self._trials.report(number, result["tokens"], result["bleu"])
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
        ),
        run_config=tune.RunConfig(
            # A fresh name each time: it is not Tune that goes on with a sweep.
            name=f"attempt-{time.time_ns()}",
            storage_path=str(sweep.folder / "ray"),
            failure_config=tune.FailureConfig(max_failures=max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # checkpoints are the run's
            verbose=0,
        ),
    )

    def stop() -> None:
        trials.let_end()
        stop_file.write_bytes(b"SIGTERM\n")

    with _closing(trials), many_processes_are_meant(), on_sigterm(stop):
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
