"""A plan: what a training takes, on this and that hardware, before anything is started. The result is JSON values.

Read `make_plan`; the sizes come from `memory.py`, the seconds from `speed.py`, the tokens from `volume.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from transloom.model.build import architecture_of
from transloom.model.config import LanguageModelConfig
from transloom.model.flops import attention_flops, count_parameters, training_flops
from transloom.pipeline.plan.hardware import Hardware
from transloom.pipeline.plan.launches import launches
from transloom.pipeline.plan.memory import GPU, Footing, Memory
from transloom.pipeline.plan.paper import GPUS, P100_FLOPS, paper_cost
from transloom.pipeline.plan.saving import Stops, less_often, validation_seconds
from transloom.pipeline.plan.speed import FORMULA, StepTime, Work, accumulation, grown, step_time
from transloom.pipeline.plan.training import Training, kernels_of, memory_of
from transloom.pipeline.train.optimizer import Precision
from transloom.pipeline.train.session import TrainConfig

STAGES = (0, 1, 2, 3)
WORKERS = tuple(2**power for power in range(11))  # 1 to 1024
ROOM = 0.95  # of a device's memory may be used
STATE_BYTES, WEIGHTS_BYTES = 12, 4  # of a parameter, in a checkpoint (weights and two moments in fp32) and a snapshot
# Assumed, bytes/s: a GPU's memory to its host's, a disk that is written and synchronised, SHA-256 of what was written
TO_HOST, TO_DISK, HASHING = 10e9, 0.5e9, 1.0e9


def make_plan(
    training: Training, hardware: Sequence[Hardware], cpu_footing: Footing, checkpoint_seconds: float | None = None
) -> dict[str, Any]:
    """The plan of a training on each of the devices.

    Args:
        cpu_footing: of a worker on this machine's CPU.
        checkpoint_seconds: measured on this machine; None: as assumed.
    """
    model, volume, train = training.model, training.volume, training.train
    parameters = count_parameters(model, training.vocab_size)
    flops = train.passes * training_flops(model, training.vocab_size, *map(round, volume.step_tokens))
    kernels = kernels_of(training)
    rows = [_on(one, training, parameters, flops, cpu_footing, checkpoint_seconds, kernels) for one in hardware]
    return {
        "corpus": training.corpus,
        "precision": training.precision.value,
        "engine": {"name": training.engine.name.value, "zero_stage": training.engine.zero_stage},
        "workers": training.workers,
        "on_gpu": training.on_gpu,
        "model": {
            "architecture": architecture_of(model),
            "parameters": parameters,
            "vocab_size": training.vocab_size,
            **_token_flops(training),
            "flops_per_step": flops,
            "flops": flops * train.max_steps,
        },
        "data": _data(training),
        "batch": {
            "tokens": training.batch.tokens,
            "micro_tokens": training.batch.micro_tokens,
            "micro_batches": training.batch.micro_batches,
            "shares": _shares(training.batch.micro_batches),
        },
        "memory": {
            place: {
                precision.value: [
                    _as_dict(memory_of(training, parameters, stage, precision, footing, kernels)) for stage in STAGES
                ]
                for precision in (Precision.fp32, Precision.bf16)
            }
            for place, footing in (("gpu", GPU), ("cpu", cpu_footing))
        },
        "steps": train.max_steps,
        "max_minutes": train.max_minutes,
        "hardware": rows,
        "checkpoint": _checkpoint(train, parameters),
        "growth": {one.key: _growth(training, parameters, flops, one) for one in hardware},
        "paper": _paper(training, flops),
        "formula": FORMULA,
    }


def _token_flops(training: Training) -> dict[str, int]:
    """FLOPs of a token; of a language model's also what attention's own products are of it, in texts as long as the
    context."""
    model, vocab_size = training.model, training.vocab_size
    if isinstance(model, LanguageModelConfig):
        of_token = training_flops(model, vocab_size, 1)
        return {
            "max_positions": model.max_positions,
            "flops_per_token": of_token,
            "attention_flops_per_token": attention_flops(model),
        }
    return {
        "flops_per_source_token": training_flops(model, vocab_size, 1, 0),
        "flops_per_target_token": training_flops(model, vocab_size, 0, 1),
    }


def _as_dict(memory: Memory) -> dict[str, float]:
    return {**dataclasses.asdict(memory), "total": memory.total}


def _shares(micro_batches: int) -> list[dict[str, Any]]:
    """Micro-batches of the busiest worker for every allowed number of workers; `idle`: share of the workers' time that
    passes waiting for it."""
    return [
        {"workers": workers, "accumulation": held, "idle": 1 - micro_batches / (held * workers)}
        for workers in range(1, micro_batches + 1)
        for held in [accumulation(micro_batches, workers)]
    ]


def _data(training: Training) -> dict[str, Any]:
    volume = training.volume
    epochs = shard_bytes = None
    if volume.numbers is not None:
        assert volume.steps_per_epoch is not None
        epochs = training.train.max_steps / volume.steps_per_epoch
        tokens, lengths = volume.numbers
        shard_bytes = (2 if training.vocab_size <= 1 << 16 else 4) * tokens + 4 * lengths
    return {
        **dataclasses.asdict(volume),
        "steps_per_epoch": volume.steps_per_epoch,
        "epochs": epochs,
        "shard_bytes": shard_bytes,
    }


def _work(training: Training, parameters: int, flops: float, stage: int, hardware: Hardware) -> Work:
    kernels, precision = training.train.passes * launches(training.model), hardware.precision_of(training.precision)
    return Work(training.batch.micro_batches, flops, kernels, parameters, precision, stage)


def _on(
    hardware: Hardware,
    training: Training,
    parameters: int,
    flops: float,
    cpu_footing: Footing,
    checkpoint_seconds: float | None,
    kernels: float,
) -> dict[str, Any]:
    """Memory, time and money on one kind of device."""
    train = training.train
    workers = training.workers if hardware.is_gpu else min(training.workers, hardware.per_machine)
    at = dataclasses.replace(training, workers=workers)
    footing = GPU if hardware.is_gpu else cpu_footing
    precision = hardware.precision_of(training.precision)
    memory = {stage: memory_of(at, parameters, stage, precision, footing, kernels).total for stage in STAGES}
    fitting = [stage for stage in _allowed(hardware, training) if memory[stage] <= ROOM * hardware.memory_bytes]
    stage = training.stage if training.stage in fitting or not fitting else fitting[0]
    time = step_time(_work(training, parameters, flops, stage, hardware), hardware, workers)
    steps = float(train.max_steps)
    if train.max_minutes:
        steps = min(steps, 60 * train.max_minutes / time.total)
    stall = checkpoint_seconds if checkpoint_seconds and not hardware.is_gpu else _stall(parameters, hardware)
    # A snapshot of the weights goes with every validation
    saving = stall * (steps // train.checkpoint_every)
    saving += stall * WEIGHTS_BYTES / STATE_BYTES * (steps // train.validate_every)
    hours = (steps * time.total + saving) / 3600
    validating = validation_seconds(at, hardware, workers)
    stops = Stops(time.total, stall, stall * WEIGHTS_BYTES / STATE_BYTES + (validating or 0.0))
    return {
        "key": hardware.key,
        "name": hardware.name,
        "origin": hardware.origin,
        "precision": precision.value,
        "workers": workers,
        "stage": stage,
        "recommended_stage": fitting[0] if fitting else None,
        "fits": stage in fitting,
        "memory_bytes": memory[stage],
        "device_bytes": hardware.memory_bytes,
        "assumed": {
            "peak_flops_per_second": hardware.peak[precision],
            "utilisation": hardware.utilisation,
            "link_bytes_per_second": hardware.link,
            "network_bytes_per_second": hardware.network,
            "devices_per_machine": hardware.per_machine,
            "price_per_hour": hardware.price,
        },
        "step_seconds": {**dataclasses.asdict(time), "total": time.total},
        "target_tokens_per_second": training.volume.step_target_tokens / time.total,
        "steps": steps,
        "checkpoint_stall_seconds": stall,
        "saving_share": saving / (3600 * hours),
        "validation_seconds": validating,
        "stops": _stops(stops, train, steps, workers * hardware.price),
        "hours": hours,
        "device_hours": hours * workers,
        "cost": hours * workers * hardware.price,
    }


def _stops(stops: Stops, train: TrainConfig, steps: float, price: float) -> dict[str, Any]:
    """The part of the time that checkpoints, snapshots and validations take, and with which settings it is small.

    Args:
        price: of an hour of all workers.
    """
    # As many snapshots as the model is the average of come together
    most_validate = max(1, int(steps) // train.average)
    before = stops.share(train.checkpoint_every, train.validate_every)
    changes = less_often(stops, train.checkpoint_every, train.validate_every, int(steps), most_validate)
    now = {"checkpoint_every": train.checkpoint_every, "validate_every": train.validate_every} | changes
    after = stops.share(**now)
    hours = steps * stops.step / 3600
    saved = hours / (1 - before) - hours / (1 - after)
    return {
        "share": before,
        "changes": {f"train.{name}": value for name, value in changes.items()},
        "share_after": after,
        "saved_hours": saved,
        "saved_cost": saved * price,
    }


def _allowed(hardware: Hardware, training: Training) -> Sequence[int]:
    """DeepSpeed's stages above 0 don't run in fp16 on a CPU."""
    return STAGES if hardware.is_gpu or training.precision is not Precision.fp16 else STAGES[:1]


def _stall(parameters: int, hardware: Hardware) -> float:
    """Seconds that a checkpoint stops the training: rank 0 collects the state, writes it and reads it for its hash."""
    size = STATE_BYTES * parameters
    return size / TO_DISK + size / HASHING + (size / TO_HOST if hardware.is_gpu else 0.0)


def _checkpoint(train: TrainConfig, parameters: int) -> dict[str, Any]:
    """What lies on the disk: complete checkpoints, and the newest and the best snapshots of the weights, now and when
    each checkpoint was written."""
    state, weights = STATE_BYTES * parameters, WEIGHTS_BYTES * parameters
    others = min(train.average, -(-train.checkpoint_every // train.validate_every))  # since a checkpoint
    snapshots = 2 * (train.average + train.keep_checkpoints * others)
    return {
        "bytes": state,
        "snapshot_bytes": weights,
        "kept": train.keep_checkpoints,
        "snapshots_kept": snapshots,
        "disk_bytes": train.keep_checkpoints * state + snapshots * weights,
    }


def _growth(training: Training, parameters: int, flops: float, hardware: Hardware) -> list[dict[str, Any]]:
    """The step's time from 1 to 1024 workers: of the same batch, as far as it can be shared, and of one that grows with
    the workers; efficiency is the speed over that of as many workers without loss."""
    work = _work(training, parameters, flops, training.stage, hardware)
    unit = accumulation(work.micro_batches, training.workers)

    def told(time: StepTime, efficiency: float) -> dict[str, float]:
        return {**dataclasses.asdict(time), "total": time.total, "efficiency": efficiency}

    alone, alone_grown = (
        step_time(work, hardware, 1).total,
        step_time(grown(work, training.workers, 1), hardware, 1).total,
    )
    found = []
    for workers in WORKERS:
        same = None
        if workers <= work.micro_batches:
            time = step_time(work, hardware, workers)
            same = told(time, alone / (time.total * workers))
        time = step_time(grown(work, training.workers, workers), hardware, workers)
        found.append(
            {
                "workers": workers,
                "same_batch": same,
                "growing_batch": {
                    **told(time, alone_grown / time.total),
                    "tokens": unit * workers * training.batch.micro_tokens,
                },
            }
        )
    return found


def _paper(training: Training, flops: float) -> dict[str, Any] | None:
    """The paper's own cost, where this is one of its trainings; `flops_counted` are those of our count in its steps."""
    cost = paper_cost(training.model, training.corpus)
    if cost is None:
        return None
    counted = flops * cost.steps
    return {
        **dataclasses.asdict(cost),
        "gpus": f"{GPUS} x P100",
        "gpu_hours": GPUS * cost.hours,
        "flops_counted": counted,
        "utilisation": counted / (GPUS * P100_FLOPS * cost.hours * 3600),
    }


def as_given(hardware: Hardware, given: Mapping[str, Mapping[str, float]]) -> Hardware:
    """The device with what was given for it.

    Args:
        given: by field (price, link, network), then by the device's key.
    """
    return dataclasses.replace(
        hardware, **{field: values[hardware.key] for field, values in given.items() if hardware.key in values}
    )
