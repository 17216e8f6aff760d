"""A member of a calibration: a process that trains with the torch engine as far as it is asked to, and says how long it
took. It is a member as the bench has them (`pipeline/processes.py`)."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import distributed as dist

from transloom.model.build import ModelConfig, build_model
from transloom.model.config import LanguageModelConfig
from transloom.model.flops import training_flops
from transloom.pipeline.data.batches import BatchConfig, Step, ahead, iterate_steps
from transloom.pipeline.data.document_shards import COLUMN
from transloom.pipeline.data.pairs import open_pairs, pair_steps
from transloom.pipeline.data.pieces import collate_pieces, cut_documents
from transloom.pipeline.data.shards import SIDES, open_shards
from transloom.pipeline.data.tokenizer import EOS_ID
from transloom.pipeline.processes import peak_bytes
from transloom.pipeline.ranks import rank, world_size
from transloom.pipeline.train.checkpoint import save_checkpoint
from transloom.pipeline.train.engine import (
    Engine,
    EngineConfig,
    EngineName,
    OptimizerConfig,
    PrecisionConfig,
    make_engine,
)
from transloom.pipeline.train.loop import add_gradients
from transloom.pipeline.train.objective import LanguageModelObjective, TranslationObjective

REDUCTIONS = 5


@dataclass(frozen=True)
class Probe:
    """The training that is measured.

    Attributes:
        batch: of all members together.
        shards: folder of prepared shards; None: sentences or documents of random words, of these `lengths`.
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
    lengths: tuple[np.ndarray, ...]
    members: int
    folder: str


@dataclass(frozen=True)
class Steps:
    """A request: take so many steps of the plan, from its step number `first` on. oneDNN makes a kernel for every new
    shape, which a long training has left behind: to be measured, steps are taken again."""

    first: int
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


class RandomWords:
    """Pairs, or documents, of random words as long as a corpus's: `Examples`."""

    def __init__(self, lengths: tuple[np.ndarray, ...], vocab_size: int, columns: tuple[str, ...] = SIDES) -> None:
        self.columns = columns
        self.lengths = np.stack(lengths, axis=1)
        longest = int(max(side.max() for side in lengths))
        self._words = np.random.default_rng(0).integers(EOS_ID + 1, vocab_size, longest)

    def __len__(self) -> int:
        return len(self.lengths)

    def get(self, column: str, row: int) -> np.ndarray:
        return np.append(self._words[: self.lengths[row, self.columns.index(column)] - 1], EOS_ID)


def make_member(probe: Probe, number: int) -> tuple[Callable[[Steps | Reduce | Save], Taken | float], int]:
    """The answerer of a member, and the memory that it held before there was a model."""
    imported = peak_bytes()
    if probe.members > 1:
        store = f"file://{probe.folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=number, world_size=probe.members)
    torch.manual_seed(probe.seed)
    device = torch.device("cpu")
    kind = LanguageModelObjective if isinstance(probe.model, LanguageModelConfig) else TranslationObjective
    objective = kind(build_model(probe.model, probe.vocab_size), probe.label_smoothing).train()
    engine = make_engine(objective, probe.optimizer, probe.precision, EngineConfig(name=EngineName.torch), device)
    plan = ahead(_steps(probe), device)
    steps: list[Step] = []

    def answer(request: Steps | Reduce | Save) -> Taken | float:
        match request:
            case Steps(first, count):
                steps.extend(islice(plan, max(0, first + count - len(steps))))
                return _take_steps(engine, steps[first : first + count], probe)
            case Reduce(numbers):
                return _reduce(numbers)
            case Save(folder):
                return _save(engine, Path(folder))

    return answer, imported


def _steps(probe: Probe) -> Iterator[Step]:
    if not isinstance(probe.model, LanguageModelConfig):
        pairs = (
            open_pairs(Path(probe.shards), "train") if probe.shards else RandomWords(probe.lengths, probe.vocab_size)
        )
        return pair_steps(pairs, probe.batch, probe.seed, rank=rank(), world_size=world_size())
    columns, context = (COLUMN,), probe.model.max_positions
    documents = (
        open_shards(Path(probe.shards), "train", columns)
        if probe.shards
        else RandomWords(probe.lengths, probe.vocab_size, columns)
    )
    return iterate_steps(
        documents,
        collate_pieces,
        "text",
        probe.batch,
        probe.seed,
        rank=rank(),
        world_size=world_size(),
        of_epoch=partial(cut_documents, context, EOS_ID),
    )


def _take_steps(engine: Engine, steps: Sequence[Step], probe: Probe) -> Taken:
    flops = update_seconds = 0.0
    started_at = time.monotonic()
    for step in steps:
        add_gradients(engine, step)
        update_at = time.monotonic()
        engine.step(1e-6)
        update_seconds += time.monotonic() - update_at
        flops += training_flops(probe.model, probe.vocab_size, *step.tokens.values())
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
