"""What the contenders of training share: the task, what they answer, and where they begin."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transloom.model.build import Model, build_model
from transloom.model.config import DecoderConfig, TransformerConfig
from transloom.pipeline.data.batches import BatchConfig
from transloom.pipeline.train.engine import EngineConfig, OptimizerConfig, PrecisionConfig
from transloom.pipeline.train.schedule import ScheduleConfig


class Kind(Enum):
    """What takes the steps."""

    ours = "ours"
    torch = "torch"
    marian = "marian"
    nanogpt = "nanogpt"
    huggingface = "huggingface"


@dataclass(frozen=True)
class Task:
    """A training that all contenders share, but for `kind` and `engine`.

    Attributes:
        shards: folder of the tokenised corpus. vocab_size: of its tokenizer.
        total_steps: of the whole training, for the schedule alone: a bench takes as many as it has time for.
        use_gpu: one GPU for each member, else the CPU.
        end_of_text: the id that stands before a document; of a language model alone.
    """

    kind: Kind
    engine: EngineConfig
    model: TransformerConfig | DecoderConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    total_steps: int
    precision: PrecisionConfig
    label_smoothing: float
    seed: int
    shards: str
    vocab_size: int
    use_gpu: bool
    end_of_text: int = 0


@dataclass(frozen=True)
class Ready:
    """A member that is about to begin: its threads, and the memory that it holds before there is a model."""

    threads: int
    imported_bytes: int


@dataclass(frozen=True)
class Burst:
    """What a member tells of its turn.

    Attributes:
        source_tokens, target_tokens: of the whole steps, over all members, without padding. A language model's tokens
            are target tokens.
        loss: summed over this member's target tokens (nats, smoothed).
        cpu_seconds: of this process, all threads.
        peak_bytes: most resident memory since its start. gpu_peak_bytes: most allocated on the GPU.
    """

    seconds: float
    source_tokens: int
    target_tokens: int
    loss: float
    cpu_seconds: float
    peak_bytes: int
    gpu_peak_bytes: int


@dataclass(frozen=True)
class Skip:
    """A request: leave out the pairs of so many steps, which were measured before."""

    steps: int


@dataclass(frozen=True)
class Weights:
    """A request: write the weights (fp32) to this file, as a safetensors file with the names of our model."""

    path: str


@dataclass(frozen=True)
class Trainer:
    """A model in training.

    Attributes:
        steps: the plan; each has its tokens by column and its loss_count, over all members. Making a batch is part of
            a step.
        take: takes a step at a learning rate; returns this member's loss, summed over its target tokens.
        save: writes the weights to a file; ours alone can.
    """

    steps: Iterator[Any]
    take: Callable[[Any, float], Tensor]
    save: Callable[[Path], None] | None = None


def initial_model(task: Task) -> Model:
    """Where all contenders begin."""
    torch.manual_seed(task.seed)
    return build_model(task.model, task.vocab_size)
