"""The few collectives on Python objects that the stages need; without a process group there is one rank, 0."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from transloom.pipeline.disk import disk_trouble
from transloom.pipeline.errors import UserError

T = TypeVar("T")


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: T) -> list[T]:
    """Every rank's value on every rank, in the ranks' order."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_any(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank; a collective, of one number on the device that the group works on."""
    if world_size() == 1:
        return flag
    highest = torch.tensor(int(flag), device=device)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return bool(highest.item())


def on_rank_zero(work: Callable[[], T]) -> T:
    """Rank 0 works, all ranks get what it returns; what is the user's to mend is raised on every rank.

    Raises:
        UserError: work raised one, or an OSError, or met a full disk.
    """
    message: list[Any] = [None, None]
    if rank() == 0:
        try:
            message[0] = work()
        except UserError as error:
            message[1] = str(error)
        except Exception as error:  # a full or vanished disk must not leave the other ranks waiting
            message[1] = disk_trouble(error)
            if message[1] is None and isinstance(error, OSError):
                message[1] = f"{error.strerror or error}: {error.filename or 'the output folder'}"
            if message[1] is None:
                raise
    if world_size() > 1:
        dist.broadcast_object_list(message, src=0)
    if message[1] is not None:
        raise UserError(message[1])
    return message[0]
