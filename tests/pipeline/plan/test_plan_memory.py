"""What a worker holds: against the engines themselves, and the laws of ZeRO."""

import gc
from dataclasses import replace

import pytest
import torch
from ranks import run_ranks

from transloom.model.build import build_model
from transloom.model.config import TransformerConfig
from transloom.model.flops import count_parameters
from transloom.pipeline.data.batches import BatchConfig
from transloom.pipeline.data.pairs import pair_steps
from transloom.pipeline.plan.activations import MicroBatch
from transloom.pipeline.plan.memory import GPU, Footing, Memory, loss_bytes, peak_memory
from transloom.pipeline.plan.probe import RandomWords
from transloom.pipeline.plan.volume import random_lengths
from transloom.pipeline.ranks import rank, world_size
from transloom.pipeline.train.engine import EngineConfig, EngineName, OptimizerConfig, PrecisionConfig, make_engine
from transloom.pipeline.train.loop import add_gradients
from transloom.pipeline.train.objective import TranslationObjective
from transloom.pipeline.train.optimizer import Precision

SHAPE = TransformerConfig(d_model=128, d_ff=512, num_heads=4, encoder_layers=2, decoder_layers=2)
VOCABULARY = 3000
HALF = MicroBatch(2000, 2000, 40, 2, 2, is_packed=False)


def memory(stage: int, workers: int, batch: MicroBatch = HALF, on_gpu: bool = False) -> Memory:
    parameters = count_parameters(SHAPE, VOCABULARY)
    footing = GPU if on_gpu else Footing(libraries=0.0, slack=1.0)
    return peak_memory(
        SHAPE, VOCABULARY, parameters, batch, stage=stage, workers=workers, on_gpu=on_gpu, footing=footing
    )


def kept_between_steps(stage: int | None, precision: Precision) -> int:
    """Bytes of all tensors that are alive after two steps; stage None: plain torch."""
    gc.collect()
    before = _alive()
    torch.manual_seed(0)
    objective = TranslationObjective(build_model(SHAPE, VOCABULARY), 0.1).train()
    name = EngineName.torch if stage is None else EngineName.deepspeed
    engine = make_engine(
        objective, OptimizerConfig(), PrecisionConfig(precision), EngineConfig(name, stage or 0), torch.device("cpu")
    )
    pairs = RandomWords((random_lengths(12.0, 30, 200), random_lengths(12.0, 30, 200)), VOCABULARY)
    steps = pair_steps(pairs, BatchConfig(512, 128), 1, rank=rank(), world_size=world_size())  # type: ignore[arg-type]
    for _ in range(2):
        add_gradients(engine, next(steps))
        engine.step(1e-4)
    gc.collect()
    after = _alive()
    return sum(size for pointer, size in after.items() if pointer not in before)


def _alive() -> dict[int, int]:
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        # A packed weight of another test's model has no storage to ask for.
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu" and not thing.is_mkldnn:
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_plain_torch_keeps_what_was_counted(precision: Precision) -> None:
    batch = replace(HALF, bytes_per_number=4 if precision is Precision.fp32 else 2)
    counted = memory(0, 1, batch)
    found = kept_between_steps(None, precision)
    assert counted.weights + counted.optimizer + counted.gradients == pytest.approx(found, rel=0.03)


def kept_by_stage() -> list[int]:
    return [kept_between_steps(stage, Precision.bf16) for stage in (0, 1, 2, 3)]  # 3 last: it replaces torch's linear


@pytest.mark.slow
def test_deepspeed_keeps_what_was_counted() -> None:
    """Between steps: masters, moments and weights; gradients where a stage has a buffer of its own for them."""
    for stage, found in enumerate(map(max, zip(*run_ranks(kept_by_stage, 2), strict=True))):
        counted = memory(stage, 2)
        kept = counted.weights + counted.optimizer
        print(f"stage {stage}: kept {found:,}, counted {kept:,.0f} + {counted.gradients:,.0f} of gradients")
        if stage == 0:
            assert found == pytest.approx(kept + counted.gradients, rel=0.03)
        assert 0.97 * kept <= found <= 1.05 * (kept + counted.gradients)


def test_sharing_never_takes_more() -> None:
    for stage in (1, 2, 3):
        alone, shared = memory(stage, 1), memory(stage, 8)
        assert shared.optimizer == pytest.approx(alone.optimizer / 8)
        assert shared.total < alone.total
    assert memory(0, 8).optimizer == memory(0, 1).optimizer
    optimizers = [memory(stage, 8).optimizer for stage in (0, 1, 2, 3)]
    assert optimizers[0] > optimizers[1] == optimizers[2] == optimizers[3]
    assert memory(2, 8).gradients < memory(1, 8).gradients


def test_half_precision_halves_what_is_computed_in_it() -> None:
    single = replace(HALF, bytes_per_number=4, bytes_per_mask=4)
    assert memory(0, 1, HALF).passing == pytest.approx(memory(0, 1, single).passing / 2, rel=0.1)
    assert memory(0, 1, single).weights == 0  # they are views of the masters
    assert memory(0, 1, HALF).optimizer == memory(0, 1, single).optimizer


def test_a_checkpoints_copies_count_where_they_lie() -> None:
    few = replace(HALF, source_tokens=8, target_tokens=8)
    parameters = count_parameters(SHAPE, VOCABULARY)
    assert memory(0, 1, few).passing == 12 * parameters  # on the CPU, beside the worker
    assert memory(0, 1, few, on_gpu=True).passing < 12 * parameters


def test_the_losss_logits_are_what_a_vocabulary_makes_them() -> None:
    large, small = (loss_bytes(SHAPE, vocabulary, HALF, on_gpu=False) for vocabulary in (100_000, 10_000))
    assert large / small == pytest.approx(10, rel=0.1)
    assert loss_bytes(SHAPE, 10_000, HALF, on_gpu=True) > small  # more rows of it in fp32 at a time
