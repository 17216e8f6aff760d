"""A sweep's trials, on the sweep's side. A trial is an ordinary run; its driver's part (the lock, MLflow) is in the
sweep's process: so a trial that is ended early leaves nothing open.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from transloom.jobs.config.schema import Config
from transloom.jobs.runs.report import open_tracker, report_training
from transloom.jobs.runs.workspace import Run, only_owner, output_dir, run_for
from transloom.jobs.sweep.table import Board
from transloom.jobs.training.worker import logged_seconds
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.errors import UserError
from transloom.pipeline.run_folder import CONFIG_FILE, STOP_FILE
from transloom.pipeline.sweep.study import Record, State, Study
from transloom.pipeline.tracking.uploader import MlflowTracker
from transloom.pipeline.train.inherit import inherit


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

    def report(self, number: int, tokens: int, score: float) -> bool:
        """Notes a validation; whether the trial is to stop."""
        record = self.study.records[number]
        if tokens <= record.tokens:  # a trial that goes on tells all it had before
            return False
        is_to_stop = self.study.report(number, tokens, score)
        self._board.reported(record)
        if is_to_stop:
            self.stopped.add(number)
            # The trial's process may have no next trial to begin, and then lives on.
            (self._open[number][0].folder / STOP_FILE).write_bytes(b"stopped by the sweep\n")
        return is_to_stop

    def end(self, number: int, state: State, failure: str | None = None) -> None:
        """Closes a trial's page and its lock, and only then notes in the study that it has ended: what a kill comes
        between is done again."""
        run, tracker, stack = self._open.pop(number)
        record = self.study.records[number]
        seconds = logged_seconds(run.folder)
        if state is State.finished and run.training:
            report_training(run, tracker)
        if state is State.stopped:
            tracker.set_tags({"sweep.stopped": f"{self._stop} at {record.tokens:,} tokens"})
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
