"""A micro-batch that does not fit in memory is taken in two halves, where the engine allows it. Else the workers
restart and cut every micro-batch into parts, whose number is kept in the run's folder. The last resort is an error."""

import functools
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from transloom.pipeline.data.batches import BatchConfig
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import atomic_write
from transloom.pipeline.ranks import on_rank_zero, world_size
from transloom.pipeline.run_folder import PARTS_FILE
from transloom.pipeline.tasks.task import Batch
from transloom.pipeline.train.engine import Engine

MESSAGES = ("can't allocate memory", "out of memory", "bad_alloc")  # of torch's allocators, in a RuntimeError

log = logging.getLogger(__name__)


class OutOfMemory(MemoryError):
    """A micro-batch does not fit.

    Attributes:
        parts: the least number of parts for the micro-batch to have a chance.
        rows: the micro-batch's number of examples.
    """

    def __init__(self, batch: Batch, parts: int, rows: int, cause: str) -> None:
        super().__init__(f"a micro-batch of {batch.in_words} does not fit in memory ({cause})")
        self.parts, self.rows = parts, rows


def is_out_of_memory(error: BaseException) -> bool:
    is_allocator = isinstance(error, RuntimeError) and any(text in str(error) for text in MESSAGES)
    return isinstance(error, MemoryError) or is_allocator  # torch.OutOfMemoryError is a RuntimeError


def forward_backward_or_halves(
    engine: Engine,
    batch: Batch,
    rows: np.ndarray,
    make: Callable[[np.ndarray], Batch] | None,
    *,
    scale: float,
    last: bool,
) -> Tensor:
    """The engine's forward_backward, once in two halves where the batch does not fit. Losses are sums, so the gradient
    is the same up to rounding. Dropout masks differ from the undivided batch's: the halves draw from the generator as
    the failed attempt left it.

    Args:
        rows: the batch's examples.
        make: makes a batch of rows; None: batches are not divided.
    Returns:
        the loss, summed over what the batch counts: a scalar on the engine's device.
    Raises:
        OutOfMemory: on this rank alone.
    """
    cause = None
    try:
        return engine.forward_backward(batch, scale=scale, last=last).total
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        cause = _first_line(error)
    # Outside of the exception handler: its traceback held the tensors of the failed attempt.
    if make is None or len(rows) < 2 or not engine.recover():
        raise OutOfMemory(batch, 2, len(rows), cause)
    if engine.device.type == "cuda":
        torch.cuda.empty_cache()
    _warn(cause)
    middle = len(rows) // 2
    try:
        first = _half(engine, make(rows[:middle]), scale, False)
        return first + _half(engine, make(rows[middle:]), scale, last)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        cause = _first_line(error)
    raise OutOfMemory(batch, 4, len(rows), cause)


def _half(engine: Engine, batch: Batch, scale: float, last: bool) -> Tensor:
    return engine.forward_backward(batch.to(engine.device), scale=scale, last=last).total


def _first_line(error: BaseException) -> str:
    return f"{error}".partition("\n")[0] or type(error).__name__


@functools.cache
def _warn(cause: str) -> None:
    log.warning("a micro-batch did not fit in memory and was taken in two halves, which costs time: %s", cause)


def cut(rows: np.ndarray, share: float, parts: int) -> list[tuple[np.ndarray, float]]:
    """Cuts a micro-batch into `parts` parts of (rows, share). A part without rows gets a stand-in of share 0, so that
    every rank makes the same number of calls."""
    return [(part, share) if len(part) else (rows[:1], 0.0) for part in np.array_split(rows, parts)]


def read_parts(folder: Path) -> int:
    """The number of parts that each micro-batch of the run is cut into; 1 unless a micro-batch did not fit before. A
    collective."""

    def read() -> int:
        try:
            return max(1, int((folder / PARTS_FILE).read_text()))
        except (FileNotFoundError, ValueError):
            return 1

    return on_rank_zero(read)


def keep_parts(folder: Path, parts: int) -> bool:
    """Writes the number of parts for the run's next workers; several ranks may write at once. Returns whether the file
    now has at least `parts`."""
    with suppress(OSError), atomic_write(folder / PARTS_FILE) as file:
        file.write(f"{parts}\n".encode())
    try:
        return int((folder / PARTS_FILE).read_text()) >= parts
    except (OSError, ValueError):
        return False


def explained(error: OutOfMemory, folder: Path, parts: int, batch: BatchConfig, longest: int) -> Exception:
    """The exception to raise in place of `error`. It is a MemoryError, which restarts the workers, if they will cut
    micro-batches into more parts. Else the examples are too long: a UserError with a single rank, and a MemoryError
    where other ranks wait for this rank.

    Args:
        folder: the run's, where the new number of parts is kept.
        parts: the number of parts of a micro-batch in this attempt.
        longest: tokens of the longest training example.
    """
    more = parts * error.parts
    if error.rows > error.parts // 2 and keep_parts(folder, more):
        return MemoryError(f"{error}. From now on each micro-batch is taken in {more} parts, which costs time")
    fitting = [size for size in range(longest, batch.micro_tokens // more + 1) if batch.tokens % size == 0]
    advice = (
        f"Start a new run with batch.micro_tokens={fitting[-1]}, which holds {1 / more:g} of that at a time"
        if fitting
        else f"The longest training example, {longest} tokens, leaves no much smaller budget: make examples shorter "
        "(clean.max_words; model.max_positions of a language model), or take a smaller model"
    )
    message = (
        f"batch.micro_tokens: {error}. {advice}; or give each worker more memory. The checkpoints before are untouched"
    )
    return UserError(message) if world_size() == 1 else MemoryError(message)
