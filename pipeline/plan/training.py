"""What is planned, and what it holds in memory."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transloom.model.build import ModelConfig
from transloom.model.config import LanguageModelConfig, RecurrentConfig, RecurrentDecoderConfig
from transloom.model.flops import count_parameters
from transloom.pipeline.data.batches import BatchConfig
from transloom.pipeline.plan.activations import MicroBatch, has_onednn_lstm
from transloom.pipeline.plan.kernels import keeps_kernels, kernel_bytes
from transloom.pipeline.plan.memory import GPU, Footing, Memory, peak_memory
from transloom.pipeline.plan.speed import accumulation
from transloom.pipeline.plan.text_volume import TextVolume, text_lengths
from transloom.pipeline.plan.volume import Volume, training_lengths
from transloom.pipeline.train.engine import EngineConfig, EngineName
from transloom.pipeline.train.optimizer import TORCH_DTYPES, Precision
from transloom.pipeline.train.session import TrainConfig


@dataclass(frozen=True)
class Training:
    """What is planned: the settings that cost something, and what is known of the data.

    Attributes:
        corpus: its name. shards: their folder; None where the corpus is not prepared.
        workers: as the configuration has them. on_gpu: one GPU each.
        validation_sentences, validation_tokens: of the validation set, tokens by column; None where not counted.
    """

    model: ModelConfig
    vocab_size: int
    batch: BatchConfig
    engine: EngineConfig
    precision: Precision
    train: TrainConfig
    seed: int
    corpus: str
    volume: Volume | TextVolume
    shards: Path | None
    workers: int
    on_gpu: bool
    validation_sentences: int | None = None
    validation_tokens: tuple[float, ...] | None = None

    @property
    def stage(self) -> int:
        """ZeRO's; plain torch keeps what stage 0 keeps."""
        return 0 if self.engine.name is EngineName.torch else self.engine.zero_stage

    @property
    def lengths(self) -> tuple[np.ndarray, ...]:
        """(examples,) tokens of each column: the corpus's own, or others like them."""
        if isinstance(self.volume, Volume):
            return training_lengths(self.volume, self.shards, self.batch.micro_tokens)
        assert isinstance(self.model, LanguageModelConfig)
        return (text_lengths(self.volume, self.shards, self.model.max_positions, self.seed),)


def memory_of(
    training: Training, parameters: int, stage: int, precision: Precision, footing: Footing, kernels: float
) -> Memory:
    """What each of its workers holds with another stage or precision.

    Args:
        footing: GPU, or that of a CPU. kernels: bytes of those that oneDNN keeps, where it keeps any.
    """
    on_gpu = footing is GPU
    model, batch = training.model, training.batch
    is_fp32 = precision is Precision.fp32
    micro_batch = MicroBatch(
        source_tokens=training.train.passes * batch.micro_tokens,  # of all passes, until the backward pass
        target_tokens=training.train.passes * batch.micro_tokens,
        longest=min(training.volume.longest, batch.micro_tokens),
        bytes_per_number=4 if is_fp32 else 2,
        bytes_per_mask=1 if on_gpu else 4 if is_fp32 else 2,
        is_packed=on_gpu and not is_fp32 and model.has_packed_attention,
        has_lstm_kernel=on_gpu
        or (isinstance(model, RecurrentConfig | RecurrentDecoderConfig) and has_onednn_lstm(TORCH_DTYPES[precision])),
    )
    return peak_memory(
        model,
        training.vocab_size,
        parameters,
        micro_batch,
        stage=stage,
        workers=training.workers,
        on_gpu=on_gpu,
        footing=footing,
        kernels=kernels if not on_gpu and keeps_kernels(precision) else 0.0,
    )


def kernels_of(training: Training, micro_batches: int | None = None) -> float:
    """Bytes of the kernels that a worker on a CPU keeps after so many micro-batches, or at the training's end."""
    if isinstance(training.volume, TextVolume) and training.shards is None:
        micro_batches = 1  # all are alike
    if micro_batches is None:
        micro_batches = training.train.max_steps * accumulation(training.batch.micro_batches, training.workers)
    return kernel_bytes(training.lengths, training.batch, training.seed, training.workers, micro_batches)


def memory_alone(training: Training, micro_batches: int, footing: Footing) -> float:
    """What one worker with the torch engine holds beside its libraries after so many micro-batches on a CPU."""
    parameters = count_parameters(training.model, training.vocab_size)
    alone = dataclasses.replace(training, workers=1)
    kernels = kernels_of(alone, micro_batches)
    bare = dataclasses.replace(footing, libraries=0.0)
    return memory_of(alone, parameters, 0, training.precision, bare, kernels).total
