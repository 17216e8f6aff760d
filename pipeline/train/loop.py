"""The training loop: steps from the plan; what stands between them is the session's. It knows neither Ray nor MLflow.

Read `train` from top to bottom: that is the path of a step.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batches import BatchConfig, Step, ahead, iterate_steps
from pipeline.errors import Diverged
from pipeline.ranks import gather, rank, world_size
from pipeline.tasks.task import Batch, Examples, Task
from pipeline.train.divergence import keep_batches, spike
from pipeline.train.engine import Engine, StepResult
from pipeline.train.memory import OutOfMemory, explained, forward_backward
from pipeline.train.session import Session, TrainState

log = logging.getLogger(__name__)


def train(session: Session, task: Task, batch: BatchConfig, seed: int, rate: Callable[[int], float]) -> str:
    """Trains to the session's end; returns the reason.

    Args:
        rate: the learning rate of an optimizer step, counted from 1.
    Raises:
        UserError: the training diverged (`Diverged`), and is to stop or has gone back often enough; a full disk;
            with one rank a micro-batch that does not fit in memory.
        MemoryError: the same with several ranks, on one of them alone.
    """
    engine, state = session.engine, session.state
    examples = task.examples("train")
    steps = _steps_from(state, task, examples, batch, seed, engine.device)
    while session.reason is None:
        try:
            session.meter.start()
            step = next(steps)
            learning_rate = rate(state.step + 1)
            losses = add_gradients(engine, step, task.collate)
            session.meter.add_loss(losses.sum())
            _count(session, step, losses, engine.step(learning_rate), task)
            session.after(step, learning_rate)
        except Diverged as error:
            session.go_back(error)
            steps = _steps_from(state, task, examples, batch, seed, engine.device)
        except OutOfMemory as error:
            raise explained(error, batch, int(step.examples.lengths.max())) from None
    return session.finish()


def _steps_from(
    state: TrainState, task: Task, examples: Examples, batch: BatchConfig, seed: int, device: torch.device
) -> Iterator[Step]:
    """The steps from the state's place in the data on, their batches made ahead."""
    place = {"epoch": state.epoch, "index": state.index, "reordered": state.reordered, "of_epoch": task.epoch}
    ranks = {"rank": rank(), "world_size": world_size()}
    return ahead(iterate_steps(examples, task.collate, task.loss_column, batch, seed, **ranks, **place), device)


def add_gradients(
    engine: Engine,
    step: Step,
    collate: Callable[[Examples, Sequence[int] | np.ndarray], Batch] | None = None,
) -> Tensor:
    """The gradients of a rank's micro-batches, into the engine; a collective. The loss is a sum over tokens, normalised
    once, by the count of all ranks.

    Args:
        collate: makes a micro-batch that does not fit in memory anew in two halves; None: none is divided.

    Returns:
        (micro-batches of this rank,) each one's loss, summed over what it counts (nats, smoothed; fp64), on the
        engine's device.
    Raises:
        OutOfMemory: on this rank alone.
    """

    def half(rows: Sequence[int] | np.ndarray) -> Batch:
        assert collate is not None
        return collate(step.examples, rows)

    losses = []
    micro_batches = list(zip(step.batches, step.rows, step.shares, step.seeds, strict=True))
    for i, (batch, rows, share, seed) in enumerate(micro_batches, start=1):
        torch.manual_seed(seed)
        is_last = i == len(micro_batches)
        make = half if collate is not None else None
        total = forward_backward(engine, batch, rows, make, scale=share / step.loss_count, last=is_last)
        losses.append(total * share)  # stays on the device: reading it here would wait for the step
    return torch.stack(losses).double()


def _count(session: Session, step: Step, losses: Tensor, result: StepResult, task: Task) -> None:
    """A step that was taken, into the session's state.

    Raises:
        Diverged: on every rank: too many skipped steps in a row, or a loss that leaps.
    """
    state, config = session.state, session.config
    session.meter.gradient_norm = result.grad_norm
    state.step += 1
    state.epoch, state.index = step.epoch, step.index + 1
    for column, count in step.tokens.items():
        state.tokens[column] = state.tokens.get(column, 0) + count
    where = f"step {state.step} (epoch {step.epoch}, batch {step.index} of its plan)"
    advice = "Lower the learning rate, warm up longer, or set optimizer.clip_norm=1"

    def keep() -> Path | None:
        return keep_batches(session.folder, state.step, len(state.reordered), step, losses, task.text)

    if result.skipped:
        state.skipped_steps += 1
        state.skipped_in_a_row += 1
        file = keep()
        if state.skipped_in_a_row >= config.max_skipped:
            raise Diverged(
                f"{state.skipped_in_a_row} steps in a row had a loss or gradient that is no number, the last one "
                f"{where}{f', whose examples are in {file}' if file else ''}: training has diverged. {advice}; "
                "precision=bf16 has a wider range than fp16. The checkpoints before are untouched"
            )
        return
    state.skipped_in_a_row = 0
    if config.spike_factor:
        loss = sum(gather(float(losses.sum()))) / step.loss_count
        median = spike(loss, state.recent_losses, config.spike_factor)
        if median is not None:
            file = keep()
            raise Diverged(
                f"{where} had a loss of {loss:.3f} a token, above train.spike_factor={config.spike_factor:g} times the "
                f"median of the steps before, {median:.3f}"
                f"{f'; its examples are in {file}' if file else ''}: training has diverged. {advice}, or raise "
                "train.spike_factor. The checkpoints before are untouched"
            )
