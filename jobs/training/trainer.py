"""The trainer: a group of Ray Train workers, and the cause of a failure."""

import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transloom.jobs.config.schema import ClusterConfig, Config
from transloom.jobs.ray_cluster.session import ALLOCATOR, worker_resources
from transloom.pipeline.train.engine import EngineName

LOST_PEER = re.compile(r"Connection (closed|reset) by peer|NCCL")  # a worker's error when another worker is gone
SHORT_OF_MEMORY = "running low on memory"  # Ray's words, far down in its message, after it has ended a process


def import_trainer() -> None:
    """Imports the modules that launch workers, which takes seconds."""
    from transloom.jobs.ray_cluster.patches import trainer_class

    trainer_class()


def engine_modules(config: Config) -> tuple[str, ...]:
    """The modules that a worker imports for its engine, seconds long."""
    return ("deepspeed",) if config.engine.name is EngineName.deepspeed else ()


def make_trainer(
    worker: Callable[[Mapping[str, Any]], Any],
    settings: Mapping[str, Any],
    cluster: ClusterConfig,
    folder: Path,
    reserve: float = 1.0,
    start_retries: int = 3,
) -> Any:
    """A TorchTrainer of `worker`, which gets `settings`, on the cluster's workers. Its `fit()` runs Ray Train's
    controller in this process, which calls `worker` on every rank.

    Args:
        folder: for Ray's own files.
        reserve: the share of its CPUs and GPUs that a worker reserves with Ray; below 1 trainings can take turns.
        start_retries: how often Ray retries the start of the workers. Ray never retries after a later death.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from transloom.jobs.ray_cluster.patches import trainer_class
    from transloom.jobs.training.process_group import NodeInterfaceConfig

    use_gpu = cluster.gpus_per_worker > 0
    resources = {kind: amount * reserve for kind, amount in worker_resources(cluster).items()}
    environment = dict(ALLOCATOR)
    if not use_gpu:
        environment["DS_ACCELERATOR"] = "cpu"
    if reserve < 1:  # Ray would set the number of threads from the reserved CPUs
        environment["OMP_NUM_THREADS"] = str(max(1, int(cluster.cpus_per_worker)))
    trainer = trainer_class()(
        worker,
        train_loop_config=dict(settings),
        scaling_config=ScalingConfig(num_workers=cluster.num_workers, use_gpu=use_gpu, resources_per_worker=resources),
        torch_config=NodeInterfaceConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            # A fresh name each time: Ray would resume a known name, but this project resumes by its own checkpoints.
            name=f"attempt-{uuid.uuid4().hex}",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=start_retries),
            worker_runtime_env={"env_vars": environment},
        ),
    )
    trainer.is_alone = not cluster.address
    return trainer


def cause_of(error: BaseException) -> str:
    """The first cause of a failure: after a worker's death the other workers report only a lost peer."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    ended = [rank for rank, failure in failures.items() if SHORT_OF_MEMORY in str(failure)]
    start_failure = getattr(error, "controller_failure", error)
    if ended or (not failures and SHORT_OF_MEMORY in str(start_failure)):
        worker = f"worker {min(ended)}" if ended else "a worker that started"
        return (
            f"Ray ended {worker}, since the memory of its node was nearly full. Less is needed with a smaller "
            "batch.micro_tokens, or with fewer workers on a node: a larger cluster.cpus_per_worker, or a smaller "
            "cluster.num_workers"
        )
    firsts = {rank: one for rank, one in failures.items() if not LOST_PEER.search(str(one))}
    if failures and not firsts:
        return "a worker was lost, and the others could not go on without it"
    if not firsts:
        first, *more = [line.strip() for line in str(start_failure).split("\n") if line.strip()] or [""]
        return f"{first} {more[-1]}" if more and first.endswith(":") else first
    worker = min(firsts)
    if "process has died" in str(firsts[worker]):
        return f"the process of worker {worker} died; was it killed, or was memory short?"
    return f"worker {worker}: {type(firsts[worker]).__name__}: {str(firsts[worker]).strip()}"
