"""A training worker: the work of each rank, from the run's folder to the loop's end.

A worker gets the run's folder, whose config.yaml is the resolved configuration.
"""

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transloom.jobs.config.compose import read_config
from transloom.jobs.config.schema import Config
from transloom.jobs.runs.environment import log_safely
from transloom.jobs.runs.report import report_validation
from transloom.jobs.runs.stopping import watched
from transloom.jobs.runs.workspace import Run, stage_folder
from transloom.jobs.training.heartbeat import Heartbeat
from transloom.pipeline.disk import disk_trouble
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json, write_json
from transloom.pipeline.processor import processor_vendor
from transloom.pipeline.run_folder import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    INITIAL_FOLDER,
    PREPARED_FILE,
    PRODUCTS_FILE,
    PROGRESS_FILE,
    RESTART_FILE,
    STOP_FILE,
    TRAINING_FILE,
)
from transloom.pipeline.tracking.spool import read_points

if TYPE_CHECKING:
    from transloom.model.build import Model

SECONDS_BETWEEN_LOOKS = 5.0  # at the cluster's CPUs, while the workers wait for a validation


def train_worker(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a worker, from its start to the end of training. Errors for the user to mend, such as a full disk, are
    returned, and raised by `train_in_attempts`, which would start another attempt after an exception."""
    try:
        attempt = Path(settings["attempt"])
        return _train(Path(settings["folder"]), attempt, settings["spare_cpus"], settings["hang_seconds"])
    except UserError as error:
        return {"user_error": str(error)}
    except Exception as error:
        if message := disk_trouble(error, Path(settings["folder"])):
            return {"user_error": message}
        raise


def _train(folder: Path, attempt: Path, spare: int, hang_seconds: float) -> dict[str, Any]:
    import torch
    from ray.train.torch import get_device

    from transloom.model.flops import training_flops
    from transloom.model.kernels.linear import Products, use_products
    from transloom.pipeline.ranks import on_rank_zero, rank, world_size
    from transloom.pipeline.tasks.build import flops_columns, make_task
    from transloom.pipeline.train.adapt import adapt, adapted_groups
    from transloom.pipeline.train.checkpoint import load_weights, resume, snapshot_path
    from transloom.pipeline.train.engine import make_engine
    from transloom.pipeline.train.loop import train
    from transloom.pipeline.train.optimizer import Precision
    from transloom.pipeline.train.schedule import learning_rate
    from transloom.pipeline.train.session import Session, TrainState

    heartbeat = Heartbeat(attempt, rank(), hang_seconds)
    config = read_config(folder / CONFIG_FILE)
    log_safely()
    logging.basicConfig(level=logging.WARNING)
    device = get_device()
    task = make_task(config, partial(stage_folder, folder))
    torch.manual_seed(config.seed)  # the initial weights
    model = task.model()
    engine_state, loop_state = resume(folder / CHECKPOINTS_FOLDER)
    if config.train.initial and (loop_state is None or config.train.freezes):  # no checkpoint has the frozen weights
        weights = load_weights(snapshot_path(folder / INITIAL_FOLDER, 0))
        model.load_state_dict(weights, strict=False)  # the other weights stay random, as bring_initial has told
        adapt(model, config.train, weights)
    objective = task.objective(model).train()
    objective.register_forward_pre_hook(lambda *_: heartbeat.advance())

    state = TrainState.of(loop_state or {})
    state.seconds = on_rank_zero(lambda: max(state.seconds, logged_seconds(folder)))
    # Which library computes the products of linear layers; a resumed run keeps its choice.
    if loop_state is None and config.precision.dtype is Precision.fp32 and device.type == "cpu":
        state.products = on_rank_zero(lambda: _products(folder, model))
    use_products(Products(*state.products))
    groups = adapted_groups(objective, config.optimizer.weight_decay, config.train.layer_decay)
    engine = make_engine(objective, config.optimizer, config.precision, config.engine, device, engine_state, groups)
    del engine_state
    reports = _reports(config, folder, heartbeat, is_first=rank() == 0)
    before = {f"{column}_tokens": count for column, count in state.tokens.items()}
    started = {"from_step": state.step, "seconds": state.seconds, **before}
    columns = flops_columns(config.task, config.model)
    session = Session(
        config.train,
        engine=engine,
        state=state,
        folder=folder,
        metadata={
            "engine": f"{config.engine.name.value} {config.engine.zero_stage}",
            "identity": read_json(folder / PREPARED_FILE)["identity"],
            "tokenizer": task.tokenizer,
        },
        selects=task.selects,
        validate=_validation(config, folder, device, spare, heartbeat),
        reports=reports,
        flops=lambda tokens: (
            config.train.passes
            * training_flops(model.config, len(model.output_weight), *(tokens[column] for column in columns))
        ),
        stop=_asked_to_stop(folder / STOP_FILE, attempt / RESTART_FILE, heartbeat, is_first=rank() == 0),
    )

    def rate(step: int) -> float:
        return learning_rate(config.schedule, step, config.train.max_steps, model.config.d_model)

    reason = train(session, task, config.batch, config.seed, rate)
    reports.flush()
    if rank() == 0 and reason != "stopped":
        write_json(
            folder / TRAINING_FILE,
            {
                **state.summary(),
                "reason": reason,
                "patience": config.train.patience,
                "world_size": world_size(),
                "this_attempt": started,
            },
        )
    return {"reason": reason}


def _asked_to_stop(stop: Path, restart: Path, heartbeat: Heartbeat, is_first: bool) -> Callable[[], bool]:
    """The `stop` function of the session: whether the command must end, or the workers make way for another attempt."""
    looks = [watched(file) for file in (stop, restart)] if is_first else []

    def is_asked() -> bool:
        heartbeat.advance()
        return any([look() for look in looks])

    return is_asked


def logged_seconds(folder: Path) -> float:
    """The seconds of training that the run has logged, over all attempts; 0 without a log. A checkpoint lacks the time
    between its step and a kill."""
    return max((point.value for point in read_points(folder) if point.key == "train/seconds"), default=0.0)


def _products(folder: Path, model: "Model") -> list[bool]:
    """The quicker products, measured once in a run. A run that restarts before its first checkpoint keeps them."""
    from transloom.model.kernels.linear import quicker_products

    file = folder / PRODUCTS_FILE
    if not file.exists():
        write_json(file, list(quicker_products(model, processor_vendor())))
    return read_json(file)


def _validation(
    config: Config, folder: Path, device: Any, spare: int, heartbeat: Heartbeat
) -> Callable[[int, Path], Any]:
    """Validates in a Ray task if the workers leave a CPU free, else on the workers, between training steps."""
    from transloom.pipeline.ranks import on_rank_zero, world_size

    if not spare:
        return lambda step, snapshot: validate_snapshot(folder, snapshot, config, device)

    import ray
    from ray.exceptions import RayTaskError

    from transloom.jobs.ray_cluster.session import free_cpus

    validate = ray.remote(num_cpus=spare, max_retries=3)(validate_snapshot)

    def result(handle: Any) -> Any:
        """What the task found; None if the cluster no longer has a CPU for it: the node that had one was lost, or had
        been lost, unnoticed, when the workers started. The task would wait for ever, and the workers for the task."""
        while not ray.wait([handle], timeout=SECONDS_BETWEEN_LOOKS)[0]:
            if free_cpus(config.cluster, world_size()) < spare:
                ray.cancel(handle, force=True)
                return None
        try:
            return ray.get(handle)
        except RayTaskError as error:  # the error's text is the task's whole traceback
            raise error.cause if isinstance(error.cause, Exception) else error from None

    def begin(step: int, snapshot: Path) -> Callable[[], Any]:
        handle = on_rank_zero(lambda: [validate.remote(folder, snapshot, config, None)])

        def wait() -> Any:
            heartbeat.begin("waiting for a validation")
            found = on_rank_zero(lambda: result(handle[0]))
            return validate_snapshot(folder, snapshot, config, device) if found is None else found

        return wait

    return begin


def validate_snapshot(folder: Path, snapshot: Path, config: Config, device: Any) -> Any:
    """The evaluation of a snapshot on the validation set. In the workers' process group the ranks share the work."""
    import torch

    from transloom.model.packed_linear import pack_linears
    from transloom.pipeline.tasks.build import make_task
    from transloom.pipeline.train.checkpoint import load_weights
    from transloom.pipeline.train.optimizer import TORCH_DTYPES

    task = make_task(config, partial(stage_folder, folder))
    model = task.model()
    model.load_state_dict(load_weights(snapshot))
    return task.validate(
        pack_linears(model.to(device or torch.device("cpu"), TORCH_DTYPES[config.precision.dtype]).eval())
    )


def _reports(config: Config, folder: Path, heartbeat: Heartbeat, is_first: bool) -> Any:
    """Rank 0's reports, to the run's spool and to the progress file; the driver shows and uploads both."""
    from transloom.pipeline.tracking.tracker import SpoolTracker
    from transloom.pipeline.train.session import Reports

    def begin(fresh: Mapping[str, Any]) -> None:
        if doing := fresh.get("doing"):
            heartbeat.begin(doing)

    if not is_first:
        return Reports(metrics=lambda *_: None, validated=lambda *_: None, progress=begin)
    tracker = SpoolTracker(folder)
    shown: dict[str, Any] = {"max_steps": config.train.max_steps, "max_minutes": config.train.max_minutes}

    def validated(step: int, found: Any) -> None:
        report_validation(tracker, Run(folder.name, folder, config), step, found)

    def progress(fresh: Mapping[str, Any]) -> None:
        begin(fresh)
        shown["doing"] = None
        shown.update(
            {key: value for key, value in fresh.items() if not isinstance(value, float) or math.isfinite(value)}
        )
        with suppress(OSError):  # a failed progress line must not end a training
            write_json(folder / PROGRESS_FILE, shown)

    return Reports(tracker.log_metrics, validated, progress, tracker.flush)
