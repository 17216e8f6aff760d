"""Measures training steps of ours on this machine: the torch engine in plain processes, alone and beside each other.

The processes are members as the bench has them (`pipeline/bench/protocol.py`): each sleeps until it is asked, so that
one alone and all together can take turns within the same minute.
"""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import distributed as dist

from model.build import ModelConfig, build_model
from model.flops import training_flops
from pipeline.bench.protocol import Contender, Meeting, peak_bytes
from pipeline.data.batches import BatchConfig, Step, ahead, iterate_steps
from pipeline.data.shards import PairDataset, open_shards
from pipeline.data.tokenizer import EOS_ID
from pipeline.plan.hardware import Hardware
from pipeline.plan.memory import Footing
from pipeline.plan.speed import UPDATE_BYTES
from pipeline.ranks import rank, world_size
from pipeline.train.checkpoint import save_checkpoint
from pipeline.train.engine import Engine, EngineConfig, EngineName, OptimizerConfig, PrecisionConfig, make_engine
from pipeline.train.loop import add_gradients
from pipeline.train.objective import TranslationObjective
from pipeline.train.optimizer import Precision

WARM_UP_SECONDS, TURN_SECONDS, TURNS = 8.0, 4.0, 4
LEAST_WARM_UP, LEAST_STEPS = 3, 2  # steps, where they take longer than that
REDUCTIONS = 5
ALONE, TOGETHER = "alone", "together"

Progress = Callable[[str, int, int], None]  # what is going on, done, in all


@dataclass(frozen=True)
class Probe:
    """The training that is measured.

    Attributes:
        batch: of all members together.
        shards: folder of prepared shards; None: sentences of random words, of `mean_lengths` tokens on the two sides.
        folder: for the members' meeting and a checkpoint.
    """

    model: ModelConfig
    vocab_size: int
    batch: BatchConfig
    optimizer: OptimizerConfig
    precision: PrecisionConfig
    label_smoothing: float
    seed: int
    shards: str | None
    mean_lengths: tuple[float, float]
    longest: int
    members: int
    folder: str


@dataclass(frozen=True)
class Steps:
    """A request: take so many steps."""

    count: int


@dataclass(frozen=True)
class Reduce:
    """A request: add up so many fp32 numbers over the members, several times."""

    numbers: int


@dataclass(frozen=True)
class Save:
    """A request: write a checkpoint into this folder."""

    folder: str


@dataclass(frozen=True)
class Taken:
    """A member's answer to Steps.

    Attributes:
        seconds: in all; update_seconds: of these, the gradients' sum over the members, and Adam.
        flops: of all members, as `training_flops` counts.
        peak_bytes: the most memory that this process has had resident so far.
    """

    seconds: float
    update_seconds: float
    flops: float
    peak_bytes: int


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        workers: who worked together.
        flops_alone, flops_together: FLOP/s of one worker in forward and backward, alone and beside the others.
        update_seconds: of Adam on the whole model.
        link, latency: bytes/s and seconds of a ring's step between the workers; None of one alone.
        training_bytes: the most that a worker alone held beside its libraries.
        checkpoint_seconds: to collect and write the complete state.
    """

    workers: int
    flops_alone: float
    flops_together: float
    update_seconds: float
    link: float | None
    latency: float | None
    training_bytes: float
    checkpoint_seconds: float


class RandomPairs:
    """Pairs of random words as long as a corpus's; what `iterate_steps` needs of a PairDataset."""

    def __init__(self, mean_lengths: tuple[float, float], longest: int, vocab_size: int, count: int = 20_000) -> None:
        random = np.random.default_rng(0)
        factors = random.lognormal(-0.125, 0.5, count)  # of mean 1: sentences' lengths are skewed
        self.source_lengths, self.target_lengths = (
            np.clip(np.rint(mean * factors), 2, longest).astype(np.int32) for mean in mean_lengths
        )
        self._words = random.integers(EOS_ID + 1, vocab_size, longest)

    def __len__(self) -> int:
        return len(self.source_lengths)

    def source(self, index: int) -> np.ndarray:
        return np.append(self._words[: self.source_lengths[index] - 1], EOS_ID)

    def target(self, index: int) -> np.ndarray:
        return np.append(self._words[: self.target_lengths[index] - 1], EOS_ID)


def make_member(probe: Probe, number: int) -> tuple[Callable[[Steps | Reduce | Save], Taken | float], int]:
    """The answerer of a member, and the memory that it held before there was a model."""
    imported = peak_bytes()
    if probe.members > 1:
        store = f"file://{probe.folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=number, world_size=probe.members)
    torch.manual_seed(probe.seed)
    device = torch.device("cpu")
    objective = TranslationObjective(build_model(probe.model, probe.vocab_size), probe.label_smoothing).train()
    engine = make_engine(objective, probe.optimizer, probe.precision, EngineConfig(name=EngineName.torch), device)
    if probe.shards:
        pairs = open_shards(Path(probe.shards), "train")
    else:
        pairs = cast(PairDataset, RandomPairs(probe.mean_lengths, probe.longest, probe.vocab_size))
    steps = ahead(iterate_steps(pairs, probe.batch, probe.seed, rank=rank(), world_size=world_size()), device)

    def answer(request: Steps | Reduce | Save) -> Taken | float:
        match request:
            case Steps(count):
                return _take_steps(engine, steps, count, probe)
            case Reduce(numbers):
                return _reduce(numbers)
            case Save(folder):
                return _save(engine, Path(folder))

    return answer, imported


def _take_steps(engine: Engine, steps: Iterator[Step], count: int, probe: Probe) -> Taken:
    flops = update_seconds = 0.0
    started_at = time.monotonic()
    for _ in range(count):
        step = next(steps)
        add_gradients(engine, step)
        update_at = time.monotonic()
        engine.step(1e-6)
        update_seconds += time.monotonic() - update_at
        flops += training_flops(probe.model, probe.vocab_size, step.source_tokens, step.target_tokens)
    return Taken(time.monotonic() - started_at, update_seconds, flops, peak_bytes())


def _reduce(numbers: int) -> float:
    """Seconds of one all-reduce."""
    row = torch.ones(numbers)
    dist.all_reduce(row)
    started_at = time.monotonic()
    for _ in range(REDUCTIONS):
        dist.all_reduce(row)
    return (time.monotonic() - started_at) / REDUCTIONS


def _save(engine: Engine, folder: Path) -> float:
    """Seconds of a checkpoint."""
    started_at = time.monotonic()
    save_checkpoint(folder, 1, engine.state(), {}, {}, keep=1)
    return time.monotonic() - started_at


def calibrate(
    probe: Probe, workers: int, parameters: int, environment: Mapping[str, str], progress: Progress
) -> Calibration:
    """Measures one worker alone and `workers` of them together.

    Args:
        probe: its batch and members are of one worker.
        environment: of the members' processes, beside this one's: threads and allocator.
    Raises:
        UserError: a member died, most likely for want of memory.
    """
    Path(probe.folder).mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="calibration-", dir=probe.folder))
    sizes = {ALONE: 1, **({TOGETHER: workers} if workers > 1 else {})}
    try:
        with Meeting() as meeting:
            contenders: dict[str, Contender] = {}
            imported: dict[str, Sequence[int]] = {}
            for name, count in sizes.items():
                progress("starting", 0, 0)
                batch = dataclasses.replace(probe.batch, tokens=probe.batch.tokens * count)
                one = dataclasses.replace(probe, batch=batch, members=count, folder=str(place))
                lost = meeting.start_processes(name, count, {**environment, "GLOO_SOCKET_IFNAME": "lo"})
                contenders[name] = meeting.meet(name, count, lost)
                contenders[name].send(*(partial(make_member, one, number) for number in range(count)))
                imported[name] = contenders[name].receive()
            taken = _take_turns(contenders, progress)
            latency, link = _ring(contenders[TOGETHER], workers, parameters) if workers > 1 else (None, None)
            progress("writing a checkpoint", 0, 0)
            checkpoint = contenders[ALONE].ask(Save(str(place / "checkpoints")))[0]
            peak = _ask_steps(contenders[ALONE], 1).peak_bytes  # a run's workers write checkpoints too
    finally:
        shutil.rmtree(place, ignore_errors=True)
    alone = taken[ALONE]
    update = alone.update_seconds
    flops_alone = alone.flops / (alone.seconds - update)
    flops_together = flops_alone
    if link is not None and latency is not None:
        # Of all members together; what they wait for each other is in it
        ring = 2 * (workers - 1) / workers * 4 * parameters / link + 2 * (workers - 1) * latency
        flops_together = taken[TOGETHER].flops / workers / (taken[TOGETHER].seconds - update - ring)
    return Calibration(
        workers=workers,
        flops_alone=flops_alone,
        flops_together=flops_together,
        update_seconds=update,
        link=link,
        latency=latency,
        training_bytes=float(peak - imported[ALONE][0]),
        checkpoint_seconds=checkpoint,
    )


def _take_turns(contenders: Mapping[str, Contender], progress: Progress) -> dict[str, Taken]:
    """Each contender's mean step."""
    pace: dict[str, int] = {}
    for name, contender in contenders.items():
        progress(f"warming up, one worker {name}" if name == ALONE else f"warming up, workers {name}", 0, 0)
        last = _ask_steps(contender, 1)
        seconds, count = last.seconds, 1
        while seconds < WARM_UP_SECONDS or count < LEAST_WARM_UP:
            last = _ask_steps(contender, 1)
            seconds, count = seconds + last.seconds, count + 1
        pace[name] = max(LEAST_STEPS, round(TURN_SECONDS / last.seconds))
    turns: dict[str, list[Taken]] = {name: [] for name in contenders}
    for number in range(TURNS):
        for name, contender in contenders.items():
            progress("measuring", number, TURNS)
            turns[name].append(_ask_steps(contender, pace[name]))
    return {name: _mean(found, TURNS * pace[name]) for name, found in turns.items()}


def _ask_steps(contender: Contender, count: int) -> Taken:
    found: list[Taken] = contender.ask(Steps(count))
    return max(found, key=lambda one: one.seconds)


def _mean(turns: Sequence[Taken], steps: int) -> Taken:
    return Taken(
        seconds=sum(one.seconds for one in turns) / steps,
        update_seconds=sum(one.update_seconds for one in turns) / steps,
        flops=sum(one.flops for one in turns) / steps,
        peak_bytes=max(one.peak_bytes for one in turns),
    )


def _ring(together: Contender, workers: int, parameters: int) -> tuple[float, float]:
    """Latency and bandwidth by which `2 (W - 1) / W x bytes / bandwidth + 2 (W - 1) x latency` is what was measured."""
    small, large = (max(together.ask(Reduce(numbers))) for numbers in (1, parameters))
    passes = 2 * (workers - 1)
    return small / passes, passes / workers * 4 * parameters / max(large - small, 1e-9)


def calibrated(
    hardware: Hardware,
    footing: Footing,
    measured: Calibration,
    precision: Precision,
    parameters: int,
    predicted_bytes: float,
) -> tuple[Hardware, Footing]:
    """This machine as it was measured, in place of what was assumed of it.

    Args:
        predicted_bytes: what the torch engine was to hold beside its libraries.
    """
    peak = {kind: flops * hardware.utilisation for kind, flops in hardware.peak.items()}
    return (
        dataclasses.replace(
            hardware,
            peak={**peak, precision: measured.flops_alone},
            utilisation=1.0,
            crowding=(1 - measured.flops_together / measured.flops_alone) / max(1, measured.workers - 1),
            memory_bandwidth=UPDATE_BYTES * parameters / measured.update_seconds,
            link=measured.link or hardware.link,
            link_latency=measured.latency or hardware.link_latency,
            origin="measured",
        ),
        dataclasses.replace(footing, slack=1.0, fixed=measured.training_bytes - predicted_bytes),
    )
