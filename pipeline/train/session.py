"""The work between the steps of a training: reports, validations, snapshots, checkpoints, the end.

A loop takes steps and tells its `Session` of each step. A loop with another control flow has a Session of its own.
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

from transloom.model.lora import LoraConfig, merge_adapters
from transloom.pipeline.data.batches import Step
from transloom.pipeline.errors import Diverged
from transloom.pipeline.ranks import gather, on_any, on_rank_zero, world_size
from transloom.pipeline.run_folder import CHECKPOINTS_FOLDER, WEIGHTS_FOLDER
from transloom.pipeline.tasks.task import Evaluation, Metric
from transloom.pipeline.train.checkpoint import KEEP_ALL, list_steps, save_checkpoint, save_weights, snapshot_path
from transloom.pipeline.train.divergence import OnDivergence, reordered_before, roll_back
from transloom.pipeline.train.engine import Engine
from transloom.pipeline.train.meter import Meter

log = logging.getLogger(__name__)


class Average(Enum):
    """The snapshots whose average is the final model: the last (the paper, section 6.1), or the best in validation."""

    last = "last"
    best = "best"


@dataclass(frozen=True)
class TrainConfig:
    """The length of a training, and its reports, validations, checkpoints and limits.

    Attributes:
        max_steps: optimizer steps.
        max_minutes: of training, without validation and checkpoints, over all attempts; checked every log_every steps.
            0: no limit.
        label_smoothing: share of the target spread over the vocabulary (section 5.4); 0 by default for other tasks than
            translation.
        r_drop: alpha of R-drop (Liang et al. 2021): every batch passes the model twice with other elements dropped, and
            alpha weighs how far both predictions are apart; a step takes twice as long. Of translation alone; 0: off.
        log_every: steps between two reports of loss, speed and learning rate.
        validate_every: steps between two validations; each also keeps a snapshot of the weights alone.
        checkpoint_every: steps between two checkpoints, which hold the whole state that training resumes from.
        keep_checkpoints: the number of newest complete checkpoints to keep.
        patience: validations in a row without a new best, after which training stops; 0: never.
        average: how many snapshots make the final model.
        average_of: whether these are the last ones, or the best in validation.
        validation_beam: the beam of a validation's translations; 1 is greedy search: quick, and close enough to choose
            by.
        max_skipped: steps in a row with a loss or gradient that is no number, after which the training has diverged.
        spike_factor: the training has also diverged if a step's loss per token is above spike_factor times the median
            of the 100 steps before; 0: no such limit.
        on_divergence: stop with an error, or go back to the newest good checkpoint and continue with the rest of the
            epoch in another order.
        max_rollbacks: rollbacks of a run; the next divergence is an error.
        initial: the source of the initial weights, with a fresh optimizer: a run, a model folder, or a Hugging Face
            folder. None: random weights.
        initial_embeddings: whether to take embeddings and output projection, too; impossible from a model with another
            tokenizer.
        frozen_layers: of the initial model the embeddings (with a tied output projection) and the first layers of each
            stack, encoder and decoder, that are not trained; 0: none, not even the embeddings.
        layer_decay: the learning rate of a layer is layer_decay times that of the layer above; the top layers and all
            that stands behind them have the schedule's rate. 1: one rate for all.
        lora: adapters are trained in place of the initial model's weights. Snapshots hold the sum of both.
    """

    max_steps: int = 100_000
    max_minutes: float = 0.0
    label_smoothing: float = 0.1
    r_drop: float = 0.0
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
    frozen_layers: int = 0
    layer_decay: float = 1.0
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        positive = ("max_steps", "log_every", "validate_every", "checkpoint_every", "keep_checkpoints", "average")
        for name in (*positive, "validation_beam", "max_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")
        for name in ("max_minutes", "patience", "max_rollbacks", "r_drop"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be at least 0, not {getattr(self, name)}")
        if self.spike_factor != 0.0 and not self.spike_factor > 1.0:
            raise ValueError(f"spike_factor: must be above 1, or 0 for none, not {self.spike_factor}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing: must be in [0, 1), not {self.label_smoothing}")
        if self.frozen_layers < 0:
            raise ValueError(f"frozen_layers: must be at least 0, not {self.frozen_layers}")
        if not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(f"layer_decay: must be above 0 and at most 1, not {self.layer_decay}")
        if self.freezes and not self.initial:
            name = "frozen_layers" if self.frozen_layers else "lora.rank"
            raise ValueError(f"{name}: would freeze random weights; give the model to begin with: train.initial=")
        if self.frozen_layers and self.lora.rank:
            raise ValueError("frozen_layers: all layers are frozen beside adapters (train.lora); leave one of both out")

    @property
    def passes(self) -> int:
        """How often a training batch passes the model."""
        return 2 if self.r_drop else 1

    @property
    def freezes(self) -> bool:
        """Whether weights of the initial model stay as they are."""
        return self.frozen_layers > 0 or self.lora.rank > 0


@dataclass
class TrainState:
    """The loop's own state, saved with each checkpoint.

    Attributes:
        epoch, index: the next step's place in the plan.
        tokens: of all steps so far, without padding, by column.
        validations: {"step", "loss", and each score by its name} of each validation, oldest first.
        pending_validation: step of a validation without a result yet.
        seconds: of training, without validation and checkpoints, over all attempts. Ranks agree on it at each report,
            and so on when the time is up.
        unreported: the meter's counts since the last report.
        recent_losses: of the last steps, in nats a target token; kept while train.spike_factor is set.
        reordered: for each rollback the place [epoch, index] from which the data are in another order.
        products: the `Products` that the training began with, kept for equal rounding; empty: torch's own.
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
        """The state in a checkpoint. Old checkpoints of translations have a separate count for each of the two
        columns."""
        saved = dict(saved)
        if "source_tokens" in saved:
            saved["tokens"] = {column: saved.pop(f"{column}_tokens") for column in ("source", "target")}
        unreported = saved.get("unreported") or {}
        if "source_tokens" in unreported:
            tokens = {column: unreported[f"{column}_tokens"] for column in ("source", "target")}
            saved["unreported"] = {**unreported, "tokens": tokens, "loss_count": tokens["target"]}
        return TrainState(**saved)

    def summary(self) -> dict[str, Any]:
        """The state in the form of `training.json`: tokens as <column>_tokens."""
        record = dataclasses.asdict(self)
        return record | {f"{column}_tokens": count for column, count in record.pop("tokens").items()}

    def validations_without_gain(self, selects: Metric) -> int:
        """The number of validations after the best one."""
        best = selects.best(self.validations)
        return len(self.validations) - 1 - self.validations.index(best) if best else 0  # type: ignore[arg-type]


# Validates the snapshot of a step's weights. Returns the result or, where other processes do the work meanwhile, a
# function that waits for the result. Both are collectives: all ranks call them, and get the same result.
Validate = Callable[[int, Path], "Evaluation | Callable[[], Evaluation]"]


@dataclass(frozen=True)
class Reports:
    """Rank 0's callbacks for events; other ranks pass functions that do nothing.

    Attributes:
        metrics: takes a step's metrics, for the tracker.
        validated: takes a step's validation, whose snapshot lies in the weights folder.
        progress: takes the progress line's values, every `log_every` steps and around validations.
        flush: writes the metrics so far to the disk, before each checkpoint; a UserError if the disk is full. Metrics
            that stay unwritten are logged again by the run that resumes from the checkpoint before.
    """

    metrics: Callable[[Mapping[str, float], int], None]
    validated: Callable[[int, Evaluation], None]
    progress: Callable[[Mapping[str, Any]], None]
    flush: Callable[[], None] = lambda: None


class Session:
    """A training between its steps; every method is a collective.

    Attributes:
        reason: why the training is over: "max_steps", "max_minutes", "patience" (the metric no longer improves) or
            "stopped"; None while the training goes on.

    Args:
        state: the state to begin with; updated in place.
        folder: the run's; gets checkpoints/ and weights/.
        metadata: goes into the checkpoints' manifests (hashes of configuration and tokenizer, engine).
        selects: the metric that patience and the best snapshots go by.
        flops: tokens by column to the operations of training on them.
        stop: called after each step. Once it returns true on any rank, all ranks save a checkpoint of that step and
            end, without waiting for a pending validation: the run will be resumed.
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
            self.save()  # a rollback needs a checkpoint
        self._mark_saved()
        # After a kill the time may be up at a step without a snapshot: then the training goes on to the next report.
        validated = {int(record["step"]) for record in state.validations} | {state.pending_validation}
        is_last = state.step >= config.max_steps or (self._is_out_of_time() and state.step in validated)
        self.reason: str | None = self._reason(is_last)

    def _take_up(self) -> None:
        """Resumes the session at the state's step."""
        self.meter = Meter(self.engine.device, self._flops, counted=self.state.unreported)
        self._pending: Callable[[], Evaluation] | None = None
        if self.state.pending_validation is not None:  # the process that waited for the result has ended
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
        """Does the work after a step with learning rate `rate`.

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
        # While steps are skipped, the training may have diverged: the checkpoint waits for the next unskipped step.
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
        """Makes the last validation and checkpoint of a training. Returns the reason of its end."""
        assert self.reason is not None, "the training goes on"
        if self.reason != "stopped":
            self._finish_validation()
            if self._saved_step != self.state.step:
                self.save()
        return self.reason

    def go_back(self, error: Diverged) -> None:
        """Goes back to the newest good checkpoint.

        Raises:
            Diverged: `error`, if the training must stop, or has gone back often enough.
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
        """Writes a checkpoint of the current step. A checkpoint amid skipped steps, written because the run was asked
        to stop, replaces no other.

        Raises:
            Diverged: a parameter or a moment is no number. Earlier checkpoints stay.
            UserError: the checkpoint can't be written. Earlier checkpoints stay.
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
        """Reports the metrics of the steps since the last report."""
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
        """Writes the weights alone, for validation and for the average. Keeps the last and the best snapshots, as of
        now and as of each checkpoint: a training that resumes from a checkpoint needs them, and a pending validation
        reads its snapshot again."""
        config, state = self.config, self.state
        weights = {name.removeprefix("model."): tensor for name, tensor in self.engine.weights().items()}
        weights = merge_adapters(weights, config.lora.scale)

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
        """Starts the validation of a snapshot; returns None if the result is there at once."""
        self.reports.progress({"doing": "validating", "step": step})
        result = self._validate(step, snapshot_path(self.folder / WEIGHTS_FOLDER, step))
        self.state.pending_validation = step
        if callable(result):
            return result
        self._pending = lambda: result
        self._finish_validation()
        return None

    def _finish_validation(self) -> None:
        """Waits for the pending validation, and counts it. A validation by other processes counts only when the next
        one begins, however early its result is there, so that a run that is stopped and resumed decides the same."""
        state = self.state
        pending, self._pending = self._pending, None
        if pending is None or state.pending_validation is None:
            return
        result = pending()
        step, state.pending_validation = state.pending_validation, None
        values = result.values()
        state.validations.append({"step": step, **values})
        self.reports.validated(step, result)
        shown = {
            "validation_score": values[self._selects.name],
            "validation_loss": result.loss,
            "validation_step": step,  # an earlier step than state.step if others validated meanwhile
            "step": state.step,
        }
        self.reports.progress(shown)


def _no_numbers(tensors: Mapping[str, Tensor], step: int) -> str | None:
    """The error's text if an element of a parameter or a moment is NaN or infinite; else None."""
    # A sum reads each element once and writes nothing; only tensors whose sum is not finite are checked by element.
    bad = [name for name, tensor in tensors.items() if not tensor.sum().isfinite() and not tensor.isfinite().all()]
    if not bad:
        return None
    others = f" (and {len(bad) - 1} other tensors)" if len(bad) > 1 else ""
    return (
        f"at step {step} {bad[0]}{others} has values that are no numbers: the training has diverged. Lower the "
        "learning rate, warm up longer, or set optimizer.clip_norm=1. The checkpoints before are untouched"
    )
