"""The LSTM under every engine: torch's LSTM keeps its own list of its weights, which ZeRO shares out and gathers."""

import numpy as np
import pytest
import torch
from ranks import run_ranks

from transloom.model.build import build_model
from transloom.model.config import RecurrentConfig
from transloom.pipeline.data.pairs import collate_pairs
from transloom.pipeline.data.tokenizer import EOS_ID
from transloom.pipeline.ranks import rank, world_size
from transloom.pipeline.train.engine import EngineConfig, EngineName, make_engine
from transloom.pipeline.train.objective import TranslationObjective
from transloom.pipeline.train.optimizer import OptimizerConfig, Precision, PrecisionConfig

VOCAB = 24
SHAPE = RecurrentConfig(d_model=192, encoder_layers=1, decoder_layers=2, dropout=0.0)  # ZeRO 3 shares out its matrices
STEPS, MICRO_BATCHES = 4, 2
STAGES = (0, 1, 2, 3)
TOLERANCE = {Precision.fp32: 1e-5, Precision.bf16: 0.1}


class Pairs:
    """Sentences of 2 to 6 words, to be repeated."""

    def get(self, column: str, row: int) -> np.ndarray:
        random = np.random.default_rng(row)
        return np.append(random.integers(4, VOCAB, random.integers(2, 7)), EOS_ID)


def trained(name: EngineName, stage: int, precision: Precision) -> dict[str, torch.Tensor]:
    """The weights after a few steps."""
    torch.manual_seed(0)
    objective = TranslationObjective(build_model(SHAPE, VOCAB), 0.1).train()
    engine = make_engine(
        objective, OptimizerConfig(), PrecisionConfig(precision), EngineConfig(name, stage), torch.device("cpu")
    )
    for step in range(STEPS):
        batches = [collate_pairs(Pairs(), range(8 * i, 8 * i + 8)) for i in range(step, step + MICRO_BATCHES)]
        tokens = sum(len(batch.labels) for batch in batches)
        mine = batches[rank() :: world_size()]
        for i, batch in enumerate(mine):
            engine.forward_backward(batch, scale=1.0 / tokens, last=i == len(mine) - 1)
        engine.step(1e-3)
    return engine.weights()


def trained_by_all() -> dict[tuple[int, Precision], dict[str, torch.Tensor]]:
    return {(stage, one): trained(EngineName.deepspeed, stage, one) for stage in STAGES for one in TOLERANCE}


@pytest.fixture(scope="module")
def ranks():
    return run_ranks(trained_by_all, 2)


@pytest.mark.parametrize(("precision", "tolerance"), TOLERANCE.items())
def test_every_stage_on_two_ranks_learns_what_plain_torch_does_on_one(ranks, precision, tolerance):
    expected = trained(EngineName.torch, 0, precision)
    torch.manual_seed(0)
    start = {f"model.{name}": tensor for name, tensor in build_model(SHAPE, VOCAB).state_dict().items()}
    moved = sum((expected[name] - start[name]).norm() ** 2 for name in expected) ** 0.5
    for stage in STAGES:
        one, other = (rank[stage, precision] for rank in ranks)
        assert other == {}, stage  # rank 0 alone writes them
        apart = sum((one[name] - expected[name]).norm() ** 2 for name in expected) ** 0.5
        assert apart < tolerance * moved, stage
