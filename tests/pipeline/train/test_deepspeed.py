"""DeepSpeed beside plain torch: all stages and types in few processes, since each imports deepspeed for seconds."""

import gc
import math
import os
from unittest.mock import patch

import pytest
import torch
from ranks import run_ranks
from torch import distributed as dist
from toy import FROZEN, Objective, freeze, make_batch, make_objective, slower_below, take_steps

from transloom.model.losses import LossSum
from transloom.pipeline.errors import UserError
from transloom.pipeline.train.engine import EngineConfig, EngineName, make_engine
from transloom.pipeline.train.optimizer import (
    KINDS,
    TORCH_DTYPES,
    EngineState,
    OptimizerConfig,
    Precision,
    PrecisionConfig,
)

CPU = torch.device("cpu")
# Stage 3 last: it replaces torch's linear for the whole process, by one that rounds differently in 16 bits.
SETUPS = [(precision, stage) for stage in range(4) for precision in TORCH_DTYPES]
OPTIMIZER = OptimizerConfig(clip_norm=0.5, weight_decay=0.01)


class Spoiled(Objective):
    factor = 1.0

    def forward(self, batch):
        loss = super().forward(batch)
        return LossSum(loss.total * self.factor, loss.num_tokens)


def make(precision, stage, module=None, initial=None, name=EngineName.deepspeed, groups=None):
    engine = EngineConfig(name, stage)
    return make_engine(module or make_objective(), OPTIMIZER, PrecisionConfig(precision), engine, CPU, initial, groups)


def prepare() -> None:
    from deepspeed.accelerator import get_accelerator

    # DeepSpeed asks for a CPU with fp16 instructions, which the arithmetic does not need.
    get_accelerator().is_fp16_supported = lambda: True
    gc.freeze()  # it collects garbage several times for each engine, which is slow with so much imported


def ranks_of() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def run_all(setups) -> dict:
    """Six steps with each setup, and what the engine tells on the way; the same again with a stop after three."""
    prepare()
    found = {}
    rank, world_size = ranks_of()
    for precision, stage in setups:
        # Ranks that begin differently follow rank 0.
        module = make_objective(seed=rank)
        engine = make(precision, stage, module)
        before = engine.weights()
        results = take_steps(engine, 0, 1, rank, world_size)
        first = engine.state()
        results += take_steps(engine, 1, 3, rank, world_size)
        with torch.no_grad():
            validation = module(make_batch(9, 9)).total.item()
        halfway = engine.state()
        results += take_steps(engine, 3, 6, rank, world_size)
        resumed = make(precision, stage, make_objective(seed=7), halfway)
        again = take_steps(resumed, 3, 6, rank, world_size)
        found[precision, stage] = {
            "before": before,
            "results": results,
            "validation": validation,
            "first": first,
            "halfway": halfway,
            "end": engine.state(),
            "weights": engine.weights(),
            "again": again,
            "end_again": resumed.state(),
        }
    return found


def go_on(halfway: dict[tuple, EngineState]) -> dict:
    """Steps three to six from states that another number of ranks left."""
    prepare()
    rank, world_size = ranks_of()
    weights = {}
    for (precision, stage), state in halfway.items():
        engine = make(precision, stage, make_objective(seed=7), state if rank == 0 else None)
        take_steps(engine, 3, 6, rank, world_size)
        weights[precision, stage] = engine.weights()
    return weights


def spoil(setups) -> dict:
    """A step whose gradient is not finite on rank 1 alone, between good ones."""
    prepare()
    rank, world_size = ranks_of()
    found = {}
    for precision, stage in setups:
        module = Spoiled()
        engine = make(precision, stage, module)
        take_steps(engine, 0, 1, rank, world_size)
        before = engine.state()
        module.factor = math.nan if rank == 1 else 1.0
        (bad,) = take_steps(engine, 1, 2, rank, world_size)
        after = engine.state()
        module.factor = 1.0
        (good,) = take_steps(engine, 2, 3, rank, world_size)
        found[precision, stage] = (bad, good, before, after)
    return found


def run_frozen(setups, name=EngineName.deepspeed) -> dict:
    """Six steps with frozen parameters and two rates; the last three again from the state before them."""
    prepare()
    rank, world_size = ranks_of()
    found = {}
    for precision, stage in setups:

        def engine(seed, initial=None, precision=precision, stage=stage):
            module = make_objective(seed)
            freeze(module)
            return make(precision, stage, module, initial, name, slower_below)

        straight = engine(rank)
        take_steps(straight, 0, 3, rank, world_size)
        halfway = straight.state()
        take_steps(straight, 3, 6, rank, world_size)
        resumed = engine(7, halfway)
        take_steps(resumed, 3, 6, rank, world_size)
        found[precision, stage] = {
            "halfway": halfway,
            "end": straight.state(),
            "end_again": resumed.state(),
            "weights": straight.weights(),
        }
    return found


def on_three_ranks(halfway: dict[tuple, EngineState]) -> dict[str, dict]:
    return {"run": run_all(SETUPS), "spoiled": spoil(SETUPS), "gone_on": go_on(halfway), "frozen": run_frozen(SETUPS)}


@pytest.fixture(scope="module")
def reference() -> dict:
    """Plain torch on one rank."""
    found = {}
    for precision in TORCH_DTYPES:
        module = make_objective()
        engine = make(precision, 0, module, name=EngineName.torch)
        results = take_steps(engine, 0, 1)
        first = engine.state()
        results += take_steps(engine, 1, 3)
        with torch.no_grad():
            validation = module(make_batch(9, 9)).total.item()
        halfway = engine.state()
        results += take_steps(engine, 3, 6)
        found[precision] = {
            "results": results,
            "validation": validation,
            "first": first,
            "halfway": halfway,
            "weights": engine.weights(),
        }
    return found


@pytest.fixture(scope="module")
def frozen_reference() -> dict:
    """Plain torch on one rank."""
    return run_frozen([(precision, 0) for precision in TORCH_DTYPES], EngineName.torch)


@pytest.fixture(scope="module")
def ranks(reference, tmp_path_factory):
    """The results of each of three ranks, in processes that find no compiler."""
    empty = tmp_path_factory.mktemp("empty")
    halfway = {setup: reference[setup[0]]["halfway"] for setup in SETUPS}
    with patch.dict(os.environ, {"PATH": str(empty), "TORCH_EXTENSIONS_DIR": str(empty)}):
        results = run_ranks(on_three_ranks, 3, halfway)
    assert list(empty.iterdir()) == []  # nothing was built
    return results


def assert_equal(one, other) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """How far apart, beside how far the other is from where training began (weights) or from 0."""
    assert one.keys() == other.keys()
    start = {f"{prefix}{n}": w for n, w in make_objective().state_dict().items() for prefix in ("", "weights/")}
    apart = sum((one[name] - other[name]).norm() ** 2 for name in one)
    moved = sum((other[name] - start.get(name, 0)).norm() ** 2 for name in other)
    return math.sqrt(apart / moved)


def of_kind(state: EngineState, kind: str) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.tensors.items() if name.startswith(f"{kind}/")}


# One step differs by the order of fp32 sums. Then Adam magnifies the difference where a gradient is nearly 0, and the
# weights' copies in 16 bits round to the other side here and there.
FIRST_STEP, FIRST_STEP_OF_STAGE_3 = 1e-5, {Precision.fp32: 1e-5, Precision.bf16: 1e-2, Precision.fp16: 2e-3}
SIX_STEPS = {Precision.fp32: 1e-5, Precision.bf16: 3e-2, Precision.fp16: 1.5e-2}


@pytest.mark.parametrize(("precision", "stage"), SETUPS)
def test_every_stage_on_three_ranks_does_what_plain_torch_does_on_one(ranks, reference, precision, stage):
    first, *others = (rank["run"][precision, stage] for rank in ranks)
    expected = reference[precision]
    assert_equal(first["before"], make_objective().state_dict())  # rank 0's, not rounded
    for other in others:
        assert other["before"] == other["weights"] == {}  # rank 0 alone writes them
        assert first["results"] == other["results"]
        assert first["validation"] == other["validation"]
    assert first["validation"] == pytest.approx(expected["validation"], rel=1e-2)
    norms = [result.grad_norm for result in first["results"]]
    assert norms == pytest.approx([result.grad_norm for result in expected["results"]], rel=1e-2)
    tolerance = FIRST_STEP_OF_STAGE_3[precision] if stage == 3 else FIRST_STEP
    for kind in KINDS[1:]:
        assert distance(of_kind(first["first"], kind), of_kind(expected["first"], kind)) < tolerance
    assert distance(first["weights"], expected["weights"]) < SIX_STEPS[precision]


@pytest.mark.parametrize(("precision", "stage"), SETUPS)
def test_resuming_is_never_having_stopped(ranks, precision, stage):
    one = ranks[0]["run"][precision, stage]
    assert one["results"][3:] == one["again"]
    assert one["end"].scalars == one["end_again"].scalars
    assert_equal(one["end"].tensors, one["end_again"].tensors)
    assert_equal({f"weights/{n}": w for n, w in one["weights"].items()}, of_kind(one["end"], "weights"))


@pytest.mark.parametrize(("precision", "stage"), SETUPS)
def test_the_state_has_the_form_of_plain_torch(ranks, reference, precision, stage):
    state, expected = ranks[0]["run"][precision, stage]["halfway"], reference[precision]["halfway"]
    assert state.scalars == expected.scalars
    assert {name: (t.shape, t.dtype) for name, t in state.tensors.items()} == {
        name: (t.shape, torch.float32) for name, t in expected.tensors.items()
    }
    assert ranks[1]["run"][precision, stage]["halfway"].tensors == {}


@pytest.mark.parametrize(("precision", "stage"), SETUPS)
def test_a_gradient_that_is_no_number_on_one_rank_is_skipped_on_all(ranks, precision, stage):
    for rank in ranks:
        bad, good, before, after = rank["spoiled"][precision, stage]
        assert bad.skipped and not good.skipped
        assert_equal(before.tensors, after.tensors)
        assert before.scalars["adam_step"] == after.scalars["adam_step"] == 1
        assert good.loss_scale == (bad.loss_scale / 2 if precision is Precision.fp16 else 1.0)


@pytest.mark.parametrize("precision", list(TORCH_DTYPES))
def test_a_state_serves_every_engine_and_number_of_ranks(ranks, reference, precision):
    """Half of the way with plain torch on one rank or with a stage on three, the other half the other way round."""
    prepare()
    expected = reference[precision]["weights"]
    for stage in range(4):
        assert distance(ranks[0]["gone_on"][precision, stage], expected) < SIX_STEPS[precision]
        halfway = ranks[0]["run"][precision, stage]["halfway"]
        for name in EngineName:
            engine = make(precision, stage, make_objective(seed=7), halfway, name)
            take_steps(engine, 3, 6)
            assert distance(engine.weights(), expected) < SIX_STEPS[precision]


@pytest.mark.parametrize(("precision", "stage"), SETUPS)
def test_frozen_parameters_and_rates_of_their_own_are_those_of_plain_torch(ranks, frozen_reference, precision, stage):
    first, *others = (rank["frozen"][precision, stage] for rank in ranks)
    expected = frozen_reference[precision, 0]
    assert all(other["weights"] == {} for other in others)
    # What is trained here moves less than the embedding, which makes rounding larger beside it.
    assert distance(first["weights"], expected["weights"]) < 2 * SIX_STEPS[precision]
    start = make_objective().state_dict()
    for name in FROZEN:  # rank 0's, in fp32 whatever the compute type
        assert torch.equal(first["weights"][name], start[name])
        assert torch.equal(first["end_again"].tensors[f"weights/{name}"], start[name])
    assert first["halfway"].tensors.keys() == expected["halfway"].tensors.keys()
    assert_equal(first["end"].tensors, first["end_again"].tensors)


def test_fp16_without_the_hardware_is_refused():
    from deepspeed.accelerator import get_accelerator

    with (
        patch.object(get_accelerator(), "is_fp16_supported", lambda: False),
        pytest.raises(UserError, match=r"fp16 needs engine\.zero_stage=0 or engine\.name=torch"),
    ):
        make(Precision.fp16, 2)
