"""A micro-batch that does not fit in memory: taken in two halves where the engine allows it, else a clear error."""

import functools
import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batches import BatchConfig
from pipeline.errors import UserError
from pipeline.ranks import world_size
from pipeline.tasks.task import Batch
from pipeline.train.engine import Engine

MESSAGES = ("can't allocate memory", "out of memory", "bad_alloc")  # of torch's allocators, in a RuntimeError

log = logging.getLogger(__name__)


class OutOfMemory(MemoryError):
    """A micro-batch does not fit.

    Attributes:
        parts: into how many parts a micro-batch must be cut to have a chance.
    """

    def __init__(self, batch: Batch, parts: int, cause: str) -> None:
        super().__init__(f"a micro-batch of {batch.in_words} does not fit in memory ({cause})")
        self.parts = parts


def is_out_of_memory(error: BaseException) -> bool:
    is_allocator = isinstance(error, RuntimeError) and any(text in str(error) for text in MESSAGES)
    return isinstance(error, MemoryError) or is_allocator  # torch.OutOfMemoryError is a RuntimeError


def forward_backward(
    engine: Engine,
    batch: Batch,
    rows: np.ndarray,
    make: Callable[[np.ndarray], Batch] | None,
    *,
    scale: float,
    last: bool,
) -> Tensor:
    """The engine's forward_backward. A batch that does not fit is taken in two halves, once. Losses are sums, so the
    gradient is the same up to rounding. Dropout draws on from where the failed attempt left the generator: its masks
    are not those of the undivided batch.

    Args:
        rows: the batch's examples.
        make: a batch of rows; None: no batch is divided.
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
    # The handler has been left: its traceback held the tensors of the failed attempt.
    if make is None or len(rows) < 2 or not engine.recover():
        raise OutOfMemory(batch, 2, cause)
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
    raise OutOfMemory(batch, 4, cause)


def _half(engine: Engine, batch: Batch, scale: float, last: bool) -> Tensor:
    return engine.forward_backward(batch.to(engine.device), scale=scale, last=last).total


def _first_line(error: BaseException) -> str:
    return f"{error}".partition("\n")[0] or type(error).__name__


@functools.cache
def _warn(cause: str) -> None:
    log.warning("a micro-batch did not fit in memory and was taken in two halves, which costs time: %s", cause)


def explained(error: OutOfMemory, batch: BatchConfig, longest: int) -> Exception:
    """What to raise in place of `error`: a UserError where all ranks raise it, since there is one; else a MemoryError,
    at which the workers are started anew, for the other ranks wait for this one.

    Args:
        longest: tokens of the longest training example.
    """
    fitting = [size for size in range(longest, batch.micro_tokens // error.parts + 1) if batch.tokens % size == 0]
    advice = (
        f"Start a new run with batch.micro_tokens={fitting[-1]}, which holds {1 / error.parts:g} of that at a time"
        if fitting
        else f"The longest training example, {longest} tokens, leaves no much smaller budget: lower clean.max_words, "
        "or take a smaller model"
    )
    message = (
        f"batch.micro_tokens: {error}. {advice}; or give each worker more memory. The checkpoints before are untouched"
    )
    return UserError(message) if world_size() == 1 else MemoryError(message)
