"""The training loop: steps from the plan, validation, checkpoints; it knows neither Ray nor MLflow.

Read `train` from top to bottom: that is the path of a step.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from model.build import Model
from pipeline.data.batches import BatchConfig, Step, ahead, iterate_steps
from pipeline.data.shards import PairDataset
from pipeline.errors import Diverged
from pipeline.ranks import gather, on_any, on_rank_zero, rank, world_size
from pipeline.train.checkpoint import list_steps, save_checkpoint, save_weights, snapshot_path
from pipeline.train.divergence import OnDivergence, keep_batches, reordered_before, roll_back, spike
from pipeline.train.engine import Engine
from pipeline.train.memory import OutOfMemory, explained, forward_backward
from pipeline.train.meter import Meter
from pipeline.train.schedule import ScheduleConfig, learning_rate

KEEP_ALL = 1 << 30  # checkpoints

log = logging.getLogger(__name__)


class Average(Enum):
    """Which snapshots make the final model: the last ones (the paper, section 6.1) or the best by validation BLEU."""

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
        patience: validations in a row without a better BLEU after which training stops; 0: never.
        average, average_of: how many snapshots make the final model, and which.
        validation_beam: 1 is greedy: quick, and close enough to choose by.
        max_skipped: steps in a row with a loss or gradient that is no number, after which the training has diverged.
        spike_factor: the training has also diverged where a step's loss per token is above this times the median of the
            100 steps before; 0: however high the loss.
        on_divergence: stop with an error, or go back to the newest good checkpoint and on from there, with what is left
            of the epoch in another order.
        max_rollbacks: how many times in a run; the next divergence is an error.
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
        validations: {"step", "loss", "bleu", "chrf"} of each validation, oldest first.
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
    source_tokens: int = 0
    target_tokens: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    validations: list[dict[str, float]] = field(default_factory=list)
    pending_validation: int | None = None
    unreported: dict[str, Any] = field(default_factory=dict)
    recent_losses: list[float] = field(default_factory=list)
    reordered: list[list[int]] = field(default_factory=list)
    products: list[bool] = field(default_factory=list)

    def best(self) -> dict[str, float] | None:
        """The first validation of the highest BLEU."""
        return max(self.validations, key=lambda one: one["bleu"], default=None)

    def validations_without_gain(self) -> int:
        """How many have come since the best one."""
        best = self.best()
        return len(self.validations) - 1 - self.validations.index(best) if best else 0


class ValidationResult(Protocol):
    """loss in nats a target token, without smoothing; BLEU and chrF from 0 to 100."""

    @property
    def loss(self) -> float: ...
    @property
    def bleu(self) -> float: ...
    @property
    def chrf(self) -> float: ...


# Validates the snapshot of a step's weights. Gives the result, or where others do the work meanwhile a function that
# waits for it. A collective, and so is that function: all ranks call, all get the same.
Validate = Callable[[int, Path], "ValidationResult | Callable[[], ValidationResult]"]


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
    validated: Callable[[int, Any], None]
    progress: Callable[[Mapping[str, Any]], None]
    flush: Callable[[], None] = lambda: None


def train(
    config: TrainConfig,
    batch: BatchConfig,
    schedule: ScheduleConfig,
    *,
    model: Model,
    engine: Engine,
    pairs: PairDataset,
    seed: int,
    state: TrainState,
    folder: Path,
    about: Mapping[str, Any],
    validate: Validate,
    reports: Reports,
    stop: Callable[[], bool] = lambda: False,
    text: Callable[[Sequence[int]], str] | None = None,
) -> str:
    """Trains to one of "max_steps", "max_minutes", "patience" (BLEU has stopped rising) and "stopped"; returns which.

    Args:
        model: what the engine trains, for its shape only.
        state: where to begin; moved along in place.
        folder: the run's; gets checkpoints/ and weights/.
        about: goes into the checkpoints' manifests (hashes of configuration and tokenizer, engine).
        stop: asked after each step; once it is true on one rank, all save a checkpoint of that step and end, without
            waiting for a validation that others are at: the run is to go on later.
        text: from token ids to a sentence, for the files of skipped batches.
    Raises:
        UserError: the training diverged (`Diverged`), and is to stop or has gone back often enough; a full disk;
            with one rank a micro-batch that does not fit in memory.
        MemoryError: the same with several ranks, on one of them alone.
    """

    def from_here() -> tuple[Iterator[Step], Meter, Callable[[], ValidationResult] | None]:
        place = {"epoch": state.epoch, "index": state.index, "reordered": state.reordered}
        plan = iterate_steps(pairs, batch, seed, rank=rank(), world_size=world_size(), **place)
        pending = None
        if state.pending_validation is not None:  # its result was lost with the process that waited for it
            pending = _begin_validation(state, state.pending_validation, folder, validate, reports)
        return ahead(plan, engine.device), Meter(model, engine.device, counted=state.unreported), pending

    def keep(step: Step, losses: Tensor) -> Path | None:
        return keep_batches(folder, state.step, len(state.reordered), step, losses, pairs, text)

    state.reordered = reordered_before(folder, state.reordered)
    steps, meter, pending = from_here()
    goes_back = config.on_divergence is OnDivergence.rollback
    if goes_back and not on_rank_zero(lambda: list_steps(folder / "checkpoints")):  # there is to be one to go back to
        save(engine, state, meter, folder, config, about, reports)
    saved_step, is_due = state.step, False
    # The time may be up, after a kill, at a step that has no snapshot. The training then goes on to the next report.
    validated = {int(one["step"]) for one in state.validations} | {state.pending_validation}
    is_last = state.step >= config.max_steps or (_is_out_of_time(state, config) and state.step in validated)
    while not is_last and not _is_out_of_patience(state, config):
        try:
            meter.start()
            step = next(steps)
            rate = learning_rate(schedule, state.step + 1, config.max_steps, model.config.d_model)
            _take_step(engine, step, rate, state, meter, config, pairs, keep)
            state.seconds += meter.stop(step)
            is_last = state.step == config.max_steps
            if state.step % config.log_every == 0 or is_last:
                _report(meter, state, rate, config, reports)
                is_last = is_last or _is_out_of_time(state, config)
            if state.step % config.validate_every == 0 or is_last:
                _finish_validation(state, pending, reports)
                _keep_snapshot(engine, state, folder, config)
                pending = _begin_validation(state, state.step, folder, validate, reports)
            # While steps are skipped, the training may have diverged: the checkpoint waits for a step that is not.
            is_due = is_due or state.step % config.checkpoint_every == 0
            if is_due and state.skipped_in_a_row == 0 and not is_last:
                save(engine, state, meter, folder, config, about, reports)
                saved_step, is_due = state.step, False
            if not is_last and on_any(stop(), engine.device):
                if saved_step != state.step:
                    save(engine, state, meter, folder, config, about, reports)
                return "stopped"
        except Diverged as error:
            _go_back(engine, state, config, folder, error, reports)
            steps, meter, pending = from_here()
            saved_step, is_due = state.step, False
        except OutOfMemory as error:
            longest = int(max(pairs.source_lengths.max(), pairs.target_lengths.max()))
            raise explained(error, batch, longest) from None
    _finish_validation(state, pending, reports)
    if saved_step != state.step:
        save(engine, state, meter, folder, config, about, reports)
    if state.step >= config.max_steps:
        return "max_steps"
    return "max_minutes" if is_last else "patience"


def _go_back(
    engine: Engine, state: TrainState, config: TrainConfig, folder: Path, error: Diverged, reports: Reports
) -> None:
    """The newest good checkpoint becomes the present, or `error` is raised; a collective."""
    if config.on_divergence is OnDivergence.stop:
        raise error
    if len(state.reordered) >= config.max_rollbacks:
        raise Diverged(
            f"{error}. The training went back to a checkpoint {len(state.reordered)} times before (train.max_rollbacks)"
        ) from error
    from_step, seconds = state.step, state.seconds
    saved = roll_back(engine, folder, from_step, state.reordered, str(error))
    vars(state).update(vars(TrainState(**saved)))
    state.seconds = max(seconds, state.seconds)
    count = len(state.reordered)
    log.warning("%s. Rollback %d of %d, to step %d", error, count, config.max_rollbacks, state.step)
    reports.metrics({"train/rollbacks": count}, from_step)
    reports.progress({"step": state.step, "rollbacks": count, "rolled_back_from": from_step})


def _is_out_of_time(state: TrainState, config: TrainConfig) -> bool:
    return 0 < config.max_minutes * 60 <= state.seconds


def _is_out_of_patience(state: TrainState, config: TrainConfig) -> bool:
    return 0 < config.patience <= state.validations_without_gain()


def save(
    engine: Engine,
    state: TrainState,
    meter: Meter,
    folder: Path,
    config: TrainConfig,
    about: Mapping[str, Any],
    reports: Reports,
) -> None:
    """Writes a checkpoint of this moment; a collective. One that is made while steps are skipped, since the run was
    asked to stop, replaces none.

    Raises:
        Diverged: a parameter or a moment is no number. The checkpoints before stay.
        UserError: the checkpoint can't be written. Those before stay.
    """
    reports.progress({"doing": "saving a checkpoint", "step": state.step})
    state.unreported = meter.state()
    engine_state = engine.state()
    manifest = {**about, "world_size": world_size()}
    keep = config.keep_checkpoints if state.skipped_in_a_row == 0 else KEEP_ALL

    def write() -> str | None:
        reports.flush()
        problem = _no_numbers(engine_state.tensors, state.step)
        if problem is None:
            save_checkpoint(folder / "checkpoints", state.step, engine_state, dataclasses.asdict(state), manifest, keep)
        return problem

    problem = on_rank_zero(write)
    if problem is not None:
        raise Diverged(problem)


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


def _report(meter: Meter, state: TrainState, rate: float, config: TrainConfig, reports: Reports) -> None:
    """Tells how the steps since the last report went; a collective."""
    state.seconds = gather(state.seconds)[0]  # the ranks' clocks differ
    metrics = {
        "learning_rate": rate,
        "seconds": state.seconds,
        "source_tokens": state.source_tokens,
        "target_tokens": state.target_tokens,
        "epoch": state.epoch,
        "skipped_steps": state.skipped_steps,
        **({"rollbacks": len(state.reordered)} if config.on_divergence is OnDivergence.rollback else {}),
        **meter.take(),
    }
    finite = {f"train/{name}": value for name, value in metrics.items() if math.isfinite(value)}
    reports.metrics(finite, state.step)
    left = (config.max_steps - state.step) * meter.seconds_per_step
    if config.max_minutes:
        left = max(0.0, min(left, config.max_minutes * 60 - state.seconds))
    reports.progress({"step": state.step, "max_steps": config.max_steps, "eta_seconds": left, **metrics})


def _keep_snapshot(engine: Engine, state: TrainState, folder: Path, config: TrainConfig) -> None:
    """Writes the weights alone, for validation and for the average; keeps the last and the best few. A collective."""
    weights = {name.removeprefix("model."): tensor for name, tensor in engine.weights().items()}

    def best_before(step: int) -> list[dict[str, float]]:
        validations = [one for one in state.validations if one["step"] <= step]
        return sorted(validations, key=lambda one: one["bleu"], reverse=True)[: config.average]

    def write() -> None:
        kept = best_before(state.step)
        if (
            config.on_divergence is OnDivergence.rollback
        ):  # what the model may be made of if a checkpoint is gone back to
            for step in list_steps(folder / "checkpoints"):
                kept += best_before(step) + [one for one in state.validations if one["step"] <= step][-config.average :]
        keep = {int(one["step"]) for one in kept}
        save_weights(folder / "weights", state.step, weights, keep_last=config.average, keep=keep)

    on_rank_zero(write)


def add_gradients(engine: Engine, step: Step, pairs: PairDataset | None = None) -> Tensor:
    """The gradients of a rank's micro-batches, into the engine; a collective. The loss is a sum over tokens, normalised
    once, by the tokens of all ranks.

    Args:
        pairs: what the step is made of: a micro-batch that does not fit in memory is made anew in two halves.

    Returns:
        (micro-batches of this rank,) each one's loss, summed over its target tokens (nats, smoothed; fp64), on the
        engine's device.
    Raises:
        OutOfMemory: on this rank alone.
    """
    losses = []
    micro_batches = list(zip(step.batches, step.rows, step.weights, step.seeds, strict=True))
    for i, (one, rows, weight, seed) in enumerate(micro_batches, start=1):
        torch.manual_seed(seed)
        is_last = i == len(micro_batches)
        total = forward_backward(engine, one, rows, pairs, scale=weight / step.target_tokens, last=is_last)
        losses.append(total * weight)  # stays on the device: reading it here would wait for the step
    return torch.stack(losses).double()


def _take_step(
    engine: Engine,
    step: Step,
    rate: float,
    state: TrainState,
    meter: Meter,
    config: TrainConfig,
    pairs: PairDataset,
    keep: Callable[[Step, Tensor], Path | None],
) -> None:
    """One optimizer step.

    Args:
        keep: writes the step's batches and their losses into a file; a collective.
    Raises:
        Diverged: on every rank: too many skipped steps in a row, or a loss that leaps.
    """
    losses = add_gradients(engine, step, pairs)
    meter.add_loss(losses.sum())
    result = engine.step(rate)
    meter.gradient_norm = result.grad_norm
    state.step += 1
    state.epoch, state.index = step.epoch, step.index + 1
    state.source_tokens += step.source_tokens
    state.target_tokens += step.target_tokens
    where = f"step {state.step} (epoch {step.epoch}, batch {step.index} of its plan)"
    advice = "Lower the learning rate, warm up longer, or set optimizer.clip_norm=1"
    if result.skipped:
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        file = keep(step, losses)
        if state.skipped_in_a_row >= config.max_skipped:
            raise Diverged(
                f"{state.skipped_in_a_row} steps in a row had a loss or gradient that is no number, the last one "
                f"{where}{f', whose sentences are in {file}' if file else ''}: training has diverged. {advice}; "
                "precision=bf16 has a wider range than fp16. The checkpoints before are untouched"
            )
        return
    state.skipped_in_a_row = 0
    if config.spike_factor:
        loss = sum(gather(float(losses.sum()))) / step.target_tokens
        median = spike(loss, state.recent_losses, config.spike_factor)
        if median is not None:
            file = keep(step, losses)
            raise Diverged(
                f"{where} had a loss of {loss:.3f} a token, above train.spike_factor={config.spike_factor:g} times the "
                f"median of the steps before, {median:.3f}"
                f"{f'; its sentences are in {file}' if file else ''}: training has diverged. {advice}, or raise "
                "train.spike_factor. The checkpoints before are untouched"
            )


def _begin_validation(
    state: TrainState, step: int, folder: Path, validate: Validate, reports: Reports
) -> Callable[[], ValidationResult] | None:
    """Has a snapshot validated; None when the result is there at once."""
    reports.progress({"doing": "validating", "step": step})
    found = validate(step, snapshot_path(folder / "weights", step))
    state.pending_validation = step
    if callable(found):
        return found
    _finish_validation(state, lambda: found, reports)
    return None


def _finish_validation(state: TrainState, pending: Callable[[], ValidationResult] | None, reports: Reports) -> None:
    """Waits for a validation, and counts it. One that others did counts only when the next one begins, however early
    it was there, so that a run that is stopped and resumed decides the same."""
    if pending is None or state.pending_validation is None:
        return
    found = pending()
    step, state.pending_validation = state.pending_validation, None
    scores = {"loss": found.loss, "bleu": found.bleu, "chrf": found.chrf}
    state.validations.append({"step": step, **scores})
    reports.validated(step, found)
    reports.progress({"validation_bleu": found.bleu, "validation_loss": found.loss, "step": state.step})
