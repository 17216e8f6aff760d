"""A small training that all contenders can take part in, on the embedded phrasebook."""

from pathlib import Path

import pytest

from transloom.model.config import TransformerConfig
from transloom.pipeline.bench.task import Kind, Task
from transloom.pipeline.data.batches import BatchConfig
from transloom.pipeline.data.clean import CleanConfig
from transloom.pipeline.data.corpus_config import CorpusConfig, CorpusKind
from transloom.pipeline.data.prepare import Prepared, prepare
from transloom.pipeline.data.tokenizer import TokenizerConfig
from transloom.pipeline.train.engine import EngineConfig, EngineName, OptimizerConfig, PrecisionConfig
from transloom.pipeline.train.optimizer import Precision
from transloom.pipeline.train.schedule import ScheduleConfig

SHAPE = TransformerConfig(
    d_model=32, d_ff=64, num_heads=4, encoder_layers=1, decoder_layers=2, dropout=0.1, max_positions=128
)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    corpus = CorpusConfig(kind=CorpusKind.phrasebook, name="phrasebook", held_out=20, phrasebook_pairs=300)
    return prepare(corpus, CleanConfig(), TokenizerConfig(vocab_size=400), tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="session")
def task(prepared: Prepared) -> Task:
    return Task(
        kind=Kind.ours,
        engine=EngineConfig(EngineName.torch),
        model=SHAPE,
        batch=BatchConfig(512, 256),
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(),
        total_steps=100_000,
        precision=PrecisionConfig(Precision.fp32),
        label_smoothing=0.1,
        seed=1,
        shards=str(prepared.shards.folder),
        vocab_size=prepared.tokenizer.manifest["counts"]["vocab_size"],
        use_gpu=False,
    )


@pytest.fixture(scope="session")
def shards(prepared: Prepared) -> Path:
    return prepared.shards.folder
