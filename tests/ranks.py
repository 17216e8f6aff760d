"""Runs a function on several ranks: one process each, gloo on loopback, one thread. All are forked from a server that
has imported, once for all tests, what each would import for seconds; no tensor was ever computed there."""

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import distributed as dist
from torch import multiprocessing

PRELOADED = [
    "pytest",
    "torch.distributed",
    "transloom.model.build",
    "transloom.pipeline.tasks.build",
    "transloom.pipeline.train.engine",
    "transloom.pipeline.train.deepspeed",
]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo"}


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 600.0) -> list[Any]:
    """What function(*args) returns on each rank. It must be a module's own function, its results picklable.

    Raises:
        RuntimeError: a rank raised (with its traceback) or ended without a result.
    """
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, ENVIRONMENT):
        queue = context.Queue()
        common = (dict(os.environ), function, world_size, folder, queue, args)
        processes = [context.Process(target=_run_rank, args=(rank, *common), daemon=True) for rank in range(world_size)]
        for process in processes:
            process.start()
        try:
            results: dict[int, Any] = {}
            while len(results) < world_size:
                rank, result, error = pickle.loads(queue.get(timeout=timeout))
                if error:
                    raise RuntimeError(f"rank {rank} of {world_size}: {error}")
                results[rank] = result
            return [results[rank] for rank in range(world_size)]
        finally:
            for process in processes:
                process.join(timeout=10 if len(results) == world_size else 0)
                process.kill()


def _run_rank(
    rank: int,
    environment: dict[str, str],
    function: Callable[..., Any],
    world_size: int,
    folder: str,
    queue: Any,
    args: tuple[Any, ...],
) -> None:
    os.environ |= environment | {"LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
        # As bytes: a tensor would be sent as a handle that dies with this process.
        message = pickle.dumps((rank, function(*args), None))
    except BaseException:
        message = pickle.dumps((rank, None, traceback.format_exc()))
    queue.put(message)
    queue.close()
    queue.join_thread()
    if dist.is_initialized():
        dist.destroy_process_group()
