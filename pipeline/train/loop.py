"""The training loop takes steps from the plan; the session acts between steps. The loop knows neither Ray nor MLflow.

Read `train` from top to bottom for the path of a step.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from transloom.pipeline.data.batches import BatchConfig, Step, ahead, iterate_steps
from transloom.pipeline.errors import Diverged
from transloom.pipeline.ranks import gather, rank, world_size
from transloom.pipeline.tasks.task import Batch, Examples, Task
from transloom.pipeline.train.divergence import keep_batches, spike
from transloom.pipeline.train.engine import Engine, StepResult
from transloom.pipeline.train.memory import OutOfMemory, cut, explained, forward_backward_or_halves, read_parts
from transloom.pipeline.train.session import Session, TrainState

log = logging.getLogger(__name__)


def train(session: Session, task: Task, batch: BatchConfig, seed: int, rate: Callable[[int], float]) -> str:
    """Trains to the session's end; returns the reason.

    Args:
        rate: the learning rate of an optimizer step, counted from 1.
    Raises:
        UserError: the training diverged (`Diverged`), and must stop or has gone back often enough; a full disk; with a
            single rank, an example that does not fit in memory.
        MemoryError: with several ranks, an example that does not fit, on that rank alone; or a micro-batch that does
            not fit, and that the run's next workers will cut smaller.
    """
    engine, state = session.engine, session.state
    parts = read_parts(session.folder)  # 1, unless an earlier attempt ran out of memory
    examples = task.examples("train")
    steps = _steps_from(state, task, examples, batch, seed, engine.device)
    while session.reason is None:
        try:
            session.meter.start()
            step = next(steps)
            learning_rate = rate(state.step + 1)
            losses = add_gradients(engine, step, task.collate, parts)
            session.meter.add_loss(losses.sum())
            result = engine.step(learning_rate)
            _count(session, step, losses, result, task)
            session.after(step, learning_rate)
        except Diverged as error:
            session.go_back(error)
            steps = _steps_from(state, task, examples, batch, seed, engine.device)
        except OutOfMemory as error:
            longest = int(step.examples.lengths.max())
            raise explained(error, session.folder, parts, batch, longest) from None
    return session.finish()


def _steps_from(
    state: TrainState, task: Task, examples: Examples, batch: BatchConfig, seed: int, device: torch.device
) -> Iterator[Step]:
    """Yields the steps from the state's place in the data on, their batches made ahead."""
    place = {"epoch": state.epoch, "index": state.index, "reordered": state.reordered, "of_epoch": task.epoch}
    ranks = {"rank": rank(), "world_size": world_size()}
    return ahead(iterate_steps(examples, task.collate, task.loss_column, batch, seed, **ranks, **place), device)


def add_gradients(
    engine: Engine,
    step: Step,
    collate: Callable[[Examples, Sequence[int] | np.ndarray], Batch] | None = None,
    parts: int = 1,
) -> Tensor:
    """Adds the gradients of a rank's micro-batches to the engine; a collective. The loss is a sum over tokens,
    normalised once, by the count of all ranks.

    Args:
        collate: makes a part of a micro-batch, or half of a micro-batch that does not fit in memory; None: no
            micro-batch is divided.
        parts: the parts of each micro-batch, the same number on every rank; above 1 needs `collate`.

    Returns:
        (micro-batches of this rank,) fp64, on the engine's device: each micro-batch's loss (nats, smoothed), summed
        over the elements that it counts.
    Raises:
        OutOfMemory: on this rank alone.
    """

    make = functools.partial(collate, step.examples) if collate is not None else None
    losses = []
    micro_batches = list(zip(step.batches, step.rows, step.shares, step.seeds, strict=True))
    for i, (batch, rows, share, seed) in enumerate(micro_batches, start=1):
        torch.manual_seed(seed)
        pieces = [(rows, share)] if parts == 1 else cut(rows, share, parts)
        totals = []
        for j, (piece_rows, piece_share) in enumerate(pieces, start=1):
            piece = batch if parts == 1 or make is None else make(piece_rows).to(engine.device)
            is_last = (i, j) == (len(micro_batches), len(pieces))
            scale = piece_share / step.loss_count
            total = forward_backward_or_halves(engine, piece, piece_rows, make, scale=scale, last=is_last)
            totals.append(total * piece_share)
        losses.append(sum(totals))  # stays on the device: reading it here would wait for the step
    return torch.stack(losses).double()


def _count(session: Session, step: Step, losses: Tensor, result: StepResult, task: Task) -> None:
    """Adds a finished step to the session's state.

    Raises:
        Diverged: on every rank: too many skipped steps in a row, or a spike of the loss.
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
