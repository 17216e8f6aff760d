"""What stands between the steps of a training: reports, validations, snapshots, checkpoints, the end.

A loop takes steps and tells its `Session` of each; another loop, of another control flow, tells another Session.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.data.batches import Step
from pipeline.errors import Diverged
from pipeline.ranks import gather, on_any, on_rank_zero, world_size
from pipeline.run_folder import CHECKPOINTS_FOLDER, WEIGHTS_FOLDER
from pipeline.tasks.task import Evaluation, Metric
from pipeline.train.checkpoint import KEEP_ALL, list_steps, save_checkpoint, save_weights, snapshot_path
from pipeline.train.divergence import OnDivergence, reordered_before, roll_back
from pipeline.train.engine import Engine
from pipeline.train.meter import Meter

log = logging.getLogger(__name__)


class Average(Enum):
    """Which snapshots make the final model: the last ones (the paper, section 6.1) or those of the best validations."""

    last = "last"
    best = "best"


@dataclass(frozen=True)
class TrainConfig:
    """How long to train and what to do meanwhile.

    Attributes:
        max_steps: optimizer steps.
        max_minutes: of training, without validation and checkpoints, over all attempts; looked at every log_every
            steps. 0: no limit.
        label_smoothing: share of the target spread over the vocabulary (section 5.4).
        log_every, validate_every, checkpoint_every: in steps. A checkpoint holds everything that training needs to
            go on; a validation also keeps a snapshot of the weights alone.
        keep_checkpoints: complete checkpoints kept, the newest.
        patience: validations in a row, none better than the best before, after which training stops; 0: never.
        average, average_of: how many snapshots make the final model, and which.
        validation_beam: 1 is greedy: quick, and close enough to choose by.
        max_skipped: steps in a row with a loss or gradient that is no number, after which the training has diverged.
        spike_factor: the training has also diverged where a step's loss per token is above this times the median of the
            100 steps before; 0: however high the loss.
        on_divergence: stop with an error, or go back to the newest good checkpoint and on from there, with what is left
            of the epoch in another order.
        max_rollbacks: how many times in a run; the next divergence is an error.
        initial: whose weights the training begins with, the optimizer anew: a run, a model folder, or a folder of
            Hugging Face's. None: random ones.
        initial_embeddings: whether embeddings and output projection are taken, too; they can't be from a model with
            another tokenizer.
    """

    max_steps: int = 100_000
    max_minutes: float = 0.0
    label_smoothing: float = 0.1
    log_every: int = 20
    validate_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    patience: int = 0
    average: int = 5
    average_of: Average = Average.last
    validation_beam: int = 1
    max_skipped: int = 20
    spike_factor: float = 0.0
    on_divergence: OnDivergence = OnDivergence.stop
    max_rollbacks: int = 3
    initial: str | None = None
    initial_embeddings: bool = True

    def __post_init__(self) -> None:
        positive = ("max_steps", "log_every", "validate_every", "checkpoint_every", "keep_checkpoints", "average")
        for name in (*positive, "validation_beam", "max_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")
        for name in ("max_minutes", "patience", "max_rollbacks"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be at least 0, not {getattr(self, name)}")
        if self.spike_factor != 0.0 and not self.spike_factor > 1.0:
            raise ValueError(f"spike_factor: must be above 1, or 0 for none, not {self.spike_factor}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing: must be in [0, 1), not {self.label_smoothing}")


@dataclass
class TrainState:
    """What the loop itself must know to go on; saved with each checkpoint.

    Attributes:
        epoch, index: where the next step stands in the plan.
        tokens: of all steps so far, without padding, by column.
        validations: {"step", "loss", and each score by its name} of each validation, oldest first.
        pending_validation: step of a validation whose result had not come yet.
        seconds: of training, without validation and checkpoints; over all attempts. Ranks agree on it when they
            report, and so on when the time is up.
        unreported: what the meter has counted since the last report.
        recent_losses: of the last steps, in nats a target token, while train.spike_factor asks for them.
        reordered: [epoch, index] from where the data come in another order, one for each rollback.
        products: the `Products` that the training began with, whose rounding it keeps; empty: torch's own.
    """

    step: int = 0
    epoch: int = 0
    index: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    validations: list[dict[str, float]] = field(default_factory=list)
    pending_validation: int | None = None
    unreported: dict[str, Any] = field(default_factory=dict)
    recent_losses: list[float] = field(default_factory=list)
    reordered: list[list[int]] = field(default_factory=list)
    products: list[bool] = field(default_factory=list)

    @staticmethod
    def of(saved: Mapping[str, Any]) -> "TrainState":
        """The state that a checkpoint has. One of a translation before there were other tasks counted its two columns
        apart."""
        saved = dict(saved)
        if "source_tokens" in saved:
            saved["tokens"] = {column: saved.pop(f"{column}_tokens") for column in ("source", "target")}
        unreported = saved.get("unreported") or {}
        if "source_tokens" in unreported:
            tokens = {column: unreported[f"{column}_tokens"] for column in ("source", "target")}
            saved["unreported"] = {**unreported, "tokens": tokens, "loss_count": tokens["target"]}
        return TrainState(**saved)

    def summary(self) -> dict[str, Any]:
        """The state as `training.json` has it: tokens as <column>_tokens."""
        record = dataclasses.asdict(self)
        return record | {f"{column}_tokens": count for column, count in record.pop("tokens").items()}

    def validations_without_gain(self, selects: Metric) -> int:
        """How many have come since the best one."""
        best = selects.best(self.validations)
        return len(self.validations) - 1 - self.validations.index(best) if best else 0  # type: ignore[arg-type]


# Validates the snapshot of a step's weights. Gives the result, or where others do the work meanwhile a function that
# waits for it. A collective, and so is that function: all ranks call, all get the same.
Validate = Callable[[int, Path], "Evaluation | Callable[[], Evaluation]"]


@dataclass(frozen=True)
class Reports:
    """Where rank 0 tells what happens; other ranks pass functions that do nothing.

    Attributes:
        metrics: metrics of a step, for the tracker.
        validated: a step's validation; its snapshot lies in the weights folder.
        progress: what the progress line shows, every `log_every` steps and around validations.
        flush: has the metrics so far reach the disk, before each checkpoint; a UserError where that is full. Metrics
            that are in memory alone are then logged again by the run that goes on from the checkpoint before.
    """

    metrics: Callable[[Mapping[str, float], int], None]
    validated: Callable[[int, Evaluation], None]
    progress: Callable[[Mapping[str, Any]], None]
    flush: Callable[[], None] = lambda: None


class Session:
    """A training between its steps; every method is a collective.

    Attributes:
        reason: why the training is over: "max_steps", "max_minutes", "patience" (the metric has stopped to improve) or
            "stopped"; None while it goes on.

    Args:
        state: where to begin; moved along in place.
        folder: the run's; gets checkpoints/ and weights/.
        metadata: goes into the checkpoints' manifests (hashes of configuration and tokenizer, engine).
        selects: the metric that patience and the best snapshots go by.
        flops: of tokens by column the operations that their training took.
        stop: asked after each step; once it is true on one rank, all save a checkpoint of that step and end, without
            waiting for a validation that others are at: the run is to go on later.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        engine: Engine,
        state: TrainState,
        folder: Path,
        metadata: Mapping[str, Any],
        selects: Metric,
        validate: Validate,
        reports: Reports,
        flops: Callable[[Mapping[str, int]], float],
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config, self.engine, self.state, self.folder = config, engine, state, folder
        self.reports = reports
        self._metadata, self._selects, self._flops = metadata, selects, flops
        self._validate, self._stop = validate, stop
        state.reordered = reordered_before(folder, state.reordered)
        self._take_up()
        if self._goes_back and not on_rank_zero(lambda: list_steps(folder / CHECKPOINTS_FOLDER)):
            self.save()  # there is to be a checkpoint to go back to
        self._mark_saved()
        # The time may be up, after a kill, at a step that has no snapshot: the training goes on to the next report.
        validated = {int(record["step"]) for record in state.validations} | {state.pending_validation}
        is_last = state.step >= config.max_steps or (self._is_out_of_time() and state.step in validated)
        self.reason: str | None = self._reason(is_last)

    def _take_up(self) -> None:
        """The session goes on from the state's step."""
        self.meter = Meter(self.engine.device, self._flops, counted=self.state.unreported)
        self._pending: Callable[[], Evaluation] | None = None
        if self.state.pending_validation is not None:  # its result was lost with the process that waited for it
            self._pending = self._begin_validation(self.state.pending_validation)

    def _mark_saved(self) -> None:
        self._saved_step, self._is_due = self.state.step, False

    def _reason(self, is_last: bool) -> str | None:
        if self.state.step >= self.config.max_steps:
            return "max_steps"
        if is_last:
            return "max_minutes"
        out_of_patience = 0 < self.config.patience <= self.state.validations_without_gain(self._selects)
        return "patience" if out_of_patience else None

    def _is_out_of_time(self) -> bool:
        return 0 < self.config.max_minutes * 60 <= self.state.seconds

    @property
    def _goes_back(self) -> bool:
        return self.config.on_divergence is OnDivergence.rollback

    def after(self, step: Step, rate: float) -> None:
        """A step was taken, with this learning rate.

        Raises:
            Diverged: see `save`.
        """
        config, state = self.config, self.state
        state.seconds += self.meter.stop(step)
        is_last = state.step == config.max_steps
        if state.step % config.log_every == 0 or is_last:
            self._report(rate)
            is_last = is_last or self._is_out_of_time()
        if state.step % config.validate_every == 0 or is_last:
            self._finish_validation()
            self._keep_snapshot()
            self._pending = self._begin_validation(state.step)
        # While steps are skipped, the training may have diverged: the checkpoint waits for a step that is not.
        self._is_due = self._is_due or state.step % config.checkpoint_every == 0
        if self._is_due and state.skipped_in_a_row == 0 and not is_last:
            self.save()
            self._mark_saved()
        if not is_last and on_any(self._stop(), self.engine.device):
            if self._saved_step != state.step:
                self.save()
            self.reason = "stopped"
            return
        self.reason = self._reason(is_last)

    def finish(self) -> str:
        """The end of a training: its last validation and checkpoint. Returns the reason."""
        assert self.reason is not None, "the training goes on"
        if self.reason != "stopped":
            self._finish_validation()
            if self._saved_step != self.state.step:
                self.save()
        return self.reason

    def go_back(self, error: Diverged) -> None:
        """The newest good checkpoint becomes the present.

        Raises:
            Diverged: `error`, where the training is to stop, or has gone back often enough.
        """
        config, state = self.config, self.state
        if config.on_divergence is OnDivergence.stop:
            raise error
        if len(state.reordered) >= config.max_rollbacks:
            raise Diverged(
                f"{error}. The training went back to a checkpoint {len(state.reordered)} times before "
                "(train.max_rollbacks)"
            ) from error
        from_step, seconds = state.step, state.seconds
        saved = roll_back(self.engine, self.folder, from_step, state.reordered, str(error))
        vars(state).update(vars(TrainState.of(saved)))
        state.seconds = max(seconds, state.seconds)
        count = len(state.reordered)
        log.warning("%s. Rollback %d of %d, to step %d", error, count, config.max_rollbacks, state.step)
        self.reports.metrics({"train/rollbacks": count}, from_step)
        self.reports.progress({"step": state.step, "rollbacks": count, "rolled_back_from": from_step})
        self._take_up()
        self._mark_saved()

    def save(self) -> None:
        """Writes a checkpoint of this moment. One that is made while steps are skipped, since the run was asked to
        stop, replaces none.

        Raises:
            Diverged: a parameter or a moment is no number. The checkpoints before stay.
            UserError: the checkpoint can't be written. Those before stay.
        """
        state = self.state
        self.reports.progress({"doing": "saving a checkpoint", "step": state.step})
        state.unreported = self.meter.state()
        engine_state = self.engine.state()
        manifest = {**self._metadata, "world_size": world_size()}
        keep = self.config.keep_checkpoints if state.skipped_in_a_row == 0 else KEEP_ALL
        folder = self.folder / CHECKPOINTS_FOLDER

        def write() -> str | None:
            self.reports.flush()
            problem = _no_numbers(engine_state.tensors, state.step)
            if problem is None:
                save_checkpoint(folder, state.step, engine_state, dataclasses.asdict(state), manifest, keep)
            return problem

        problem = on_rank_zero(write)
        if problem is not None:
            raise Diverged(problem)

    def _report(self, rate: float) -> None:
        """Tells how the steps since the last report went."""
        config, state = self.config, self.state
        state.seconds = gather(state.seconds)[0]  # the ranks' clocks differ
        metrics = {
            "learning_rate": rate,
            "seconds": state.seconds,
            **{f"{column}_tokens": count for column, count in state.tokens.items()},
            "epoch": state.epoch,
            "skipped_steps": state.skipped_steps,
            **({"rollbacks": len(state.reordered)} if self._goes_back else {}),
            **self.meter.take(),
        }
        finite = {f"train/{name}": value for name, value in metrics.items() if math.isfinite(value)}
        self.reports.metrics(finite, state.step)
        left = (config.max_steps - state.step) * self.meter.seconds_per_step
        if config.max_minutes:
            left = max(0.0, min(left, config.max_minutes * 60 - state.seconds))
        progress = {"step": state.step, "max_steps": config.max_steps, "eta_seconds": left, **metrics}
        self.reports.progress(progress)

    def _keep_snapshot(self) -> None:
        """Writes the weights alone, for validation and for the average. The last and the best few stay, and those that
        a training which goes on from one of the checkpoints has as its last and best few: a validation that was pending
        there reads its snapshot again."""
        config, state = self.config, self.state
        weights = {name.removeprefix("model."): tensor for name, tensor in self.engine.weights().items()}

        def best_before(step: int) -> list[dict[str, float]]:
            validations = [record for record in state.validations if record["step"] <= step]
            by_score = sorted(validations, key=lambda record: self._selects.sort_key(record[self._selects.name]))
            return by_score[: config.average]

        def write() -> None:
            kept = best_before(state.step)
            for step in list_steps(self.folder / CHECKPOINTS_FOLDER):
                before = [record for record in state.validations if record["step"] <= step]
                kept += best_before(step) + before[-config.average :]
            keep = {int(record["step"]) for record in kept}
            save_weights(self.folder / WEIGHTS_FOLDER, state.step, weights, keep_last=config.average, keep=keep)

        on_rank_zero(write)

    def _begin_validation(self, step: int) -> Callable[[], Evaluation] | None:
        """Has a snapshot validated; None when the result is there at once."""
        self.reports.progress({"doing": "validating", "step": step})
        result = self._validate(step, snapshot_path(self.folder / WEIGHTS_FOLDER, step))
        self.state.pending_validation = step
        if callable(result):
            return result
        self._pending = lambda: result
        self._finish_validation()
        return None

    def _finish_validation(self) -> None:
        """Waits for a validation, and counts it. One that others did counts only when the next one begins, however
        early its result was there, so that a run that is stopped and resumed decides the same."""
        state = self.state
        pending, self._pending = self._pending, None
        if pending is None or state.pending_validation is None:
            return
        result = pending()
        step, state.pending_validation = state.pending_validation, None
        values = result.values()
        state.validations.append({"step": step, **values})
        self.reports.validated(step, result)
        shown = {"validation_score": values[self._selects.name], "validation_loss": result.loss, "step": state.step}
        self.reports.progress(shown)


def _no_numbers(tensors: Mapping[str, Tensor], step: int) -> str | None:
    """What is wrong where an element of a parameter or a moment is NaN or infinite; else None."""
    # A sum reads each element once and writes nothing; one that overflows is looked at more closely.
    bad = [name for name, tensor in tensors.items() if not tensor.sum().isfinite() and not tensor.isfinite().all()]
    if not bad:
        return None
    others = f" (and {len(bad) - 1} other tensors)" if len(bad) > 1 else ""
    return (
        f"at step {step} {bad[0]}{others} has values that are no numbers: the training has diverged. Lower the "
        "learning rate, warm up longer, or set optimizer.clip_norm=1. The checkpoints before are untouched"
    )
