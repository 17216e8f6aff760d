"""Starts the contenders of the bench: plain processes, and workers of Ray Train; and lets them train in turns."""

import dataclasses
import os
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transloom.jobs.config.schema import ClusterConfig, Config
from transloom.jobs.ray_cluster.session import ALLOCATOR
from transloom.jobs.training.trainer import make_trainer
from transloom.model.config import (
    Attention,
    DecoderConfig,
    Norm,
    Positions,
    RecurrentConfig,
    RecurrentDecoderConfig,
)
from transloom.pipeline.bench.config import BenchConfig
from transloom.pipeline.bench.kept import Kept
from transloom.pipeline.bench.report import (
    BARE,
    CONTROL,
    HUGGINGFACE,
    MARIAN,
    NANOGPT,
    TWO,
    ZERO0,
    ZERO1,
    summarise_training,
    training_ratios,
)
from transloom.pipeline.bench.task import Kind, Ready, Task, Weights
from transloom.pipeline.bench.training import make_matmul, make_member
from transloom.pipeline.bench.turns import rounds_of, take_turns
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.errors import UserError
from transloom.pipeline.huggingface import huggingface_form
from transloom.pipeline.processes import Contender, IsLost, Meeting, serve
from transloom.pipeline.progress import Progress
from transloom.pipeline.tasks.build import TaskName
from transloom.pipeline.train.engine import EngineConfig, EngineName
from transloom.pipeline.train.optimizer import TORCH_DTYPES, Precision

SECONDS_TO_END = 30.0
MATMUL = "matrix product"


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def environment(threads: int) -> dict[str, str]:
    """What every contender has in its environment, ours and the others."""
    return {**ALLOCATOR, "OMP_NUM_THREADS": str(threads)}


def refuse_unlike(config: Config) -> None:
    """Refuses what the others can't be made to do.

    Raises:
        UserError: naming the setting.
    """
    model = config.model
    if config.task not in (TaskName.translation, TaskName.language_model):
        raise UserError(
            "task: the bench measures translation (experiment=bench) and language_model "
            f"(experiment=language_model/demo), not {config.task.value}"
        )
    if config.precision.dtype is Precision.fp16:
        raise UserError("precision.dtype: the bench compares in bf16 or fp32, not in fp16")
    if isinstance(model, RecurrentConfig | RecurrentDecoderConfig):
        raise UserError("model: the bench compares Transformers; choose another model")
    if model.attention is not Attention.full:
        raise UserError(
            "model.attention: the bench compares with full attention; leave it out, or take part=length, which "
            "measures all kinds"
        )
    if isinstance(model, DecoderConfig):
        if model.positions not in (Positions.learned, Positions.rotary):
            raise UserError(
                f"model.positions: the bench compares with learned and rotary ones, not with {model.positions.value}"
            )
        if model.norm is not Norm.pre:
            raise UserError("model.norm: the bench compares with language models that are pre-norm; leave it out")
        return
    if model.positions is not Positions.sinusoidal:
        raise UserError("model.positions: the bench compares with models that have sinusoids; leave it out")
    if not model.shared_embeddings:
        raise UserError("model.shared_embeddings: the bench compares with models of one embedding; leave it out")
    if {model.key_width * model.num_heads, model.value_width * model.num_heads} != {model.d_model}:
        raise UserError("model.d_k: the bench compares with models where it is d_model / num_heads; leave it out")
    if config.optimizer.weight_decay:
        raise UserError("optimizer.weight_decay: the bench compares without it; leave it out")


def task_of(config: Config, prepared: Prepared) -> Task:
    """The training that all share; the contender's kind and engine are put in its place."""
    assert not isinstance(config.model, RecurrentConfig | RecurrentDecoderConfig)
    counts = prepared.tokenizer.manifest["counts"]
    return Task(
        kind=Kind.ours,
        engine=EngineConfig(EngineName.torch),
        model=config.model,
        batch=config.batch,
        optimizer=config.optimizer,
        schedule=config.schedule,
        total_steps=config.train.max_steps,
        precision=config.precision,
        label_smoothing=config.train.label_smoothing,
        seed=config.seed,
        shards=str(prepared.shards.folder),
        vocab_size=counts["vocab_size"],
        use_gpu=config.cluster.gpus_per_worker > 0,
        end_of_text=counts.get("end_of_text", 0),
    )


def contenders_of(task: Task) -> tuple[dict[str, tuple[Task, int]], list[str]]:
    """What each contender does, and with how many members, by name; and why others are left out."""

    def zero(stage: int) -> Task:
        return dataclasses.replace(task, engine=EngineConfig(EngineName.deepspeed, stage))

    found, notes = {BARE: (task, 1), ZERO0: (zero(0), 1), ZERO1: (zero(1), 1)}, []
    if not task.use_gpu and cores() > 1 and task.batch.micro_batches > 1:
        found[TWO] = (zero(1), 2)
    else:
        notes.append(f"{TWO}: left out, for it needs two processor cores, no GPU, and a step of two micro-batches")
    if isinstance(task.model, DecoderConfig):
        return found | _text_peers(task, task.model, notes), notes
    found[CONTROL] = (dataclasses.replace(task, kind=Kind.torch), 1)
    if not find_spec("transformers"):
        notes.append(f"{MARIAN} is left out: the package transformers is not installed (pip install transformers)")
    elif task.model.norm is Norm.pre:
        notes.append(f"{MARIAN} is left out: it is post-norm, and this model is pre-norm")
    else:
        found[MARIAN] = (dataclasses.replace(task, kind=Kind.marian), 1)
    return found, notes


def _text_peers(task: Task, model: DecoderConfig, notes: list[str]) -> dict[str, tuple[Task, int]]:
    """What a language model is compared with; why Hugging Face is left out is noted."""
    found = {NANOGPT: (dataclasses.replace(task, kind=Kind.nanogpt), 1)}
    try:
        huggingface_form(model)
    except UserError as error:
        notes.append(f"{HUGGINGFACE} is left out: {error}")
        return found
    if not find_spec("transformers"):
        notes.append(f"{HUGGINGFACE} is left out: the package transformers is not installed (pip install transformers)")
        return found
    return found | {HUGGINGFACE: (dataclasses.replace(task, kind=Kind.huggingface), 1)}


def has_all_turns(bench: BenchConfig, kept: Kept) -> bool:
    """Whether every contender of training has had its turns, here or in an earlier command."""
    names = _names(kept)
    return bool(names) and all(len(turns) == bench.rounds for turns in rounds_of(kept, names).turns.values())


def training_result(task: Task, bench: BenchConfig, kept: Kept) -> dict[str, Any] | None:
    """What the turns amount to, with how many they are; None where there was none."""
    names = _names(kept)
    rounds = rounds_of(kept, names)
    if not any(rounds.turns.values()):
        return None
    lines = kept.of("contenders")
    ready = {name: [Ready(**one) for one in members] for line in lines for name, members in line["ready"].items()}
    return {
        **summarise_training(rounds, ready, task.model, task.vocab_size),
        "ratios": [one.as_dict() for one in training_ratios(rounds, task.precision.dtype is Precision.fp32)],
        "notes": lines[0]["notes"],
        "measured": {"turns": sum(map(len, rounds.turns.values())), "of": bench.rounds * len(names)},
    }


def _names(kept: Kept) -> list[str]:
    """The contenders of training; none where they have not started yet."""
    return list(kept.of("contenders")[0]["ready"]) if kept.of("contenders") else []


def measure_training(
    task: Task, cluster: ClusterConfig, bench: BenchConfig, weights: Path | None, kept: Kept, progress: Progress
) -> None:
    """Lets all contenders train in turns, inside a session of Ray; ours alone, without Ray, where only the weights are
    missing.

    Args:
        weights: a file for weights to decode with; ours alone trains on for them. None: not needed.
        kept: the turns of earlier commands; gets those that are taken.
    Raises:
        UserError: a contender died or refused.
    """
    from transloom.jobs.ray_cluster.patches import MANY_PROCESSES, without_messages

    tasks, notes = contenders_of(task)
    if has_all_turns(bench, kept):
        tasks = {BARE: tasks[BARE]}
    under_ray = [name for name, (one, _) in tasks.items() if one.engine.name is EngineName.deepspeed]
    with ExitStack() as stack:
        stack.enter_context(without_messages(MANY_PROCESSES))
        ray_folder = stack.enter_context(TemporaryDirectory(prefix="transloom-bench-", ignore_cleanup_errors=True))
        threads: list[threading.Thread] = []
        stack.callback(lambda: [thread.join(SECONDS_TO_END) for thread in threads])
        meeting = stack.enter_context(Meeting())
        progress("starting the contenders", 0, 0)
        lost: dict[str, IsLost] = {}
        for name in (MATMUL, *tasks):
            if name in under_ray:
                members = tasks[name][1]
                lost[name], thread = _start_under_ray(meeting, name, members, cluster, Path(ray_folder), len(under_ray))
                threads.append(thread)
            else:
                lost[name] = meeting.start_processes(name, 1, environment(cores()))
        matmul = meeting.meet(MATMUL, 1, lost[MATMUL])
        contenders = {name: meeting.meet(name, members, lost[name]) for name, (_, members) in tasks.items()}
        matmul.send(partial(make_matmul, task.use_gpu, TORCH_DTYPES[task.precision.dtype]))
        for name, contender in contenders.items():
            contender.send(partial(make_member, tasks[name][0]))
        matmul.receive()
        ready = {name: contender.receive() for name, contender in contenders.items()}
        in_json = {name: [dataclasses.asdict(member) for member in members] for name, members in ready.items()}
        kept.add("contenders", ready=in_json, notes=notes)
        taken = take_turns(contenders, matmul, bench.rounds, bench.steps, kept, progress)
        if weights:
            _train_on(contenders[BARE], taken[BARE], bench.steps_in_all, weights, progress)


def _train_on(ours: Contender, taken: int, steps_in_all: int, path: Path, progress: Progress) -> None:
    """Until translations have sensible lengths."""
    done = taken
    while done < steps_in_all:
        progress("training ours on, to decode with its weights: steps", done - taken, steps_in_all - taken)
        steps = min(20, steps_in_all - done)
        ours.ask(steps)
        done += steps
    ours.ask(Weights(str(path)))


def _start_under_ray(
    meeting: Meeting, name: str, workers: int, cluster: ClusterConfig, folder: Path, trainings: int
) -> tuple[IsLost, threading.Thread]:
    """Starts `workers` members as a training of Ray Train, one of several that are there at the same time."""
    cluster = dataclasses.replace(
        cluster, num_workers=workers, cpus_per_worker=max(1, cores() // workers), max_failures=0
    )
    settings = {"address": meeting.address, "name": name, "use_gpu": cluster.gpus_per_worker > 0}
    # Each reserves so little that all fit on the machine together; only one of them works at a time.
    reserve = 1 / (trainings + 1) / cluster.cpus_per_worker
    trainer = make_trainer(serve_worker, settings, cluster, folder, reserve)
    ended: list[str] = []

    def fit() -> None:
        try:
            trainer.fit()
            ended.append("its training ended")
        except BaseException as error:
            ended.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=fit, name=name, daemon=True)
    thread.start()
    return lambda: ended[0] if ended else None, thread


def serve_worker(settings: Mapping[str, Any]) -> None:
    """A worker of Ray Train as a member of a contender."""
    from ray.train import get_context
    from ray.train.torch import get_device

    if settings["use_gpu"]:
        import torch

        torch.cuda.set_device(get_device())
    serve(settings["address"], settings["name"], get_context().get_world_rank())
