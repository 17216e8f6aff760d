"""How much each part does: on a GPU, and where there is none (`device=cpu`), in seconds.

The models and the demo are those of conf/, which is read by Hydra and may not be read here; a test holds them equal.
"""

from dataclasses import dataclass, replace

from transloom.model.config import TransformerConfig
from transloom.pipeline.data.batches import BatchConfig
from transloom.pipeline.data.clean import CleanConfig
from transloom.pipeline.data.corpus_config import CorpusConfig, CorpusKind
from transloom.pipeline.data.tokenizer import TokenizerConfig
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.train.engine import OptimizerConfig, PrecisionConfig
from transloom.pipeline.train.optimizer import Precision
from transloom.pipeline.train.schedule import ScheduleConfig, ScheduleName
from transloom.pipeline.train.session import Average, TrainConfig

BASE = TransformerConfig(d_model=512, d_ff=2048, num_heads=8, encoder_layers=6, decoder_layers=6, dropout=0.1)
BIG = TransformerConfig(d_model=1024, d_ff=4096, num_heads=16, encoder_layers=6, decoder_layers=6, dropout=0.3)
TINY = TransformerConfig(d_model=32, d_ff=64, num_heads=4, encoder_layers=1, decoder_layers=1, dropout=0.1)


@dataclass(frozen=True)
class TrainingSize:
    """A training whose speed is measured.

    Attributes:
        batch: one micro-batch a step, since a GPU is fastest with large ones.
        pairs: random sentence pairs in an epoch.
        warm_up: steps before anything is measured. steps: of each round.
        matmul_seconds: for how long the matrix product is measured, before and after the training.
        goal: target tokens/s to reach on an H200; None where the speed means nothing.
    """

    model: TransformerConfig
    vocab_size: int
    batch: BatchConfig
    pairs: int
    warm_up: int
    rounds: int
    steps: int
    matmul_seconds: float
    goal: float | None


# The paper's batches are of 25,000 tokens a side, and its vocabulary of 37,000 pieces.
_BASE = TrainingSize(BASE, 37_000, BatchConfig(25_000, 25_000), 100_000, 15, 5, 10, 1.0, 620_000)
TRAININGS = {"base": _BASE, "big": replace(_BASE, model=BIG, goal=250_000)}
_TINY_TRAINING = TrainingSize(TINY, 500, BatchConfig(512, 512), 200, 1, 2, 2, 0.05, None)


def training_size(name: str, device: str) -> TrainingSize:
    """The training of "base" or "big"."""
    return _TINY_TRAINING if device == "cpu" else TRAININGS[name]


@dataclass(frozen=True)
class AttentionSize:
    """Shapes for comparing attention; the i-th sentence has lengths[i] target tokens and as many source tokens as its
    mirror image in `lengths`."""

    model: TransformerConfig
    vocab_size: int
    lengths: tuple[int, ...]


# Around the sizes of the blocks that kernels work on, and single tokens
_LENGTHS = (1, 2, 3, 17, 30, 31, 63, 64, 65, 100, 127, 128, 129, 257)
_ATTENTION_MODEL = replace(BASE, encoder_layers=2, decoder_layers=2, dropout=0.0)
_ATTENTION = AttentionSize(_ATTENTION_MODEL, 8000, _LENGTHS)


def attention_size(device: str) -> AttentionSize:
    return AttentionSize(replace(TINY, dropout=0.0), 50, (5, 1, 7, 16)) if device == "cpu" else _ATTENTION


@dataclass(frozen=True)
class EngineSize:
    """A short training on one step's micro-batches, over and over. No dropout: engines are compared."""

    model: TransformerConfig
    vocab_size: int
    batch: BatchConfig
    updates: int
    learning_rate: float


_ENGINE_MODEL = TransformerConfig(256, 1024, 4, encoder_layers=2, decoder_layers=2, dropout=0.0)
_ENGINE = EngineSize(_ENGINE_MODEL, 4000, BatchConfig(8192, 4096), 12, 1e-3)


def engine_size(device: str) -> EngineSize:
    tiny = replace(TINY, dropout=0.0)
    return EngineSize(tiny, 500, BatchConfig(512, 256), 12, 5e-3) if device == "cpu" else _ENGINE


@dataclass(frozen=True)
class Demo:
    """The experiment `demo`, but for the engine: here it is plain torch, alone.

    Attributes:
        bleu: on the test set, to reach; None where it is not trained long enough to have one.
    """

    corpus: CorpusConfig
    clean: CleanConfig
    tokenizer: TokenizerConfig
    model: TransformerConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    precision: PrecisionConfig
    train: TrainConfig
    decode: BeamConfig
    seed: int
    bleu: float | None


DEMO = Demo(
    corpus=CorpusConfig(kind=CorpusKind.phrasebook, name="phrasebook_en_de", held_out=500),
    clean=CleanConfig(),
    tokenizer=TokenizerConfig(vocab_size=4000),
    model=TransformerConfig(d_model=128, d_ff=512, num_heads=4, encoder_layers=2, decoder_layers=2, dropout=0.1),
    batch=BatchConfig(tokens=2048, micro_tokens=1024),
    optimizer=OptimizerConfig(),
    schedule=ScheduleConfig(ScheduleName.inverse_sqrt, warmup_steps=200, peak_learning_rate=4e-3),
    precision=PrecisionConfig(Precision.bf16),
    train=TrainConfig(max_steps=600, validate_every=150, checkpoint_every=150, average=2, average_of=Average.last),
    decode=BeamConfig(beam=4, length_penalty=0.6, extra_tokens=50),
    seed=1,
    bleu=90.0,
)


def demo_size(device: str) -> Demo:
    """On a CPU a few steps of a smaller one."""
    if device != "cpu":
        return DEMO
    return replace(
        DEMO,
        corpus=replace(DEMO.corpus, held_out=12, phrasebook_pairs=200),
        tokenizer=replace(DEMO.tokenizer, vocab_size=400),
        model=TINY,
        train=replace(DEMO.train, max_steps=4, validate_every=2, checkpoint_every=4),
        bleu=None,
    )


@dataclass(frozen=True)
class DecodingSize:
    """How often the demo's test set is translated with a beam of 5, `batch_sentences` at a time.

    Attributes:
        goal: share of translations that are the same as Marian's; None where the model is not trained.
    """

    decode: BeamConfig
    rounds: int
    goal: float | None


def decoding_size(device: str) -> DecodingSize:
    beam = replace(DEMO.decode, beam=5, batch_sentences=128)
    if device == "cpu":
        return DecodingSize(replace(beam, extra_tokens=3), 1, None)
    return DecodingSize(beam, 3, 0.95)
