import itertools
import math
from collections.abc import Callable

import pytest
import torch
from ranks import run_ranks
from torch import nn
from torch.profiler import ProfilerActivity, profile
from toy import (
    FROZEN,
    MICRO_BATCHES,
    WIDTH,
    Objective,
    freeze,
    make_batch,
    make_objective,
    rate_factor,
    slower_below,
    take_steps,
)

from transloom.model.losses import LossSum
from transloom.pipeline.errors import UserError
from transloom.pipeline.train.engine import EngineConfig, EngineName, make_engine
from transloom.pipeline.train.optimizer import (
    TORCH_DTYPES,
    EngineState,
    GroupSettings,
    OptimizerConfig,
    Precision,
    PrecisionConfig,
    decay_groups,
)
from transloom.pipeline.train.torch_engine import TorchEngine

CPU = torch.device("cpu")
TORCH = EngineConfig(EngineName.torch)


def make_torch_engine(
    precision=Precision.fp32, clip_norm=0.0, initial=None, module=None, weight_decay=0.0, groups=None, **settings
) -> TorchEngine:
    module = module or make_objective()
    optimizer = OptimizerConfig(clip_norm=clip_norm, weight_decay=weight_decay)
    engine = make_engine(module, optimizer, PrecisionConfig(precision, **settings), TORCH, CPU, initial, groups)
    assert isinstance(engine, TorchEngine)
    return engine


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (lambda: PrecisionConfig(min_loss_scale=0.0), "min_loss_scale"),
        (lambda: PrecisionConfig(scale_window=0), "scale_window"),
        (lambda: OptimizerConfig(beta2=1.0), "beta2"),
        (lambda: OptimizerConfig(eps=0.0), "eps"),
        (lambda: OptimizerConfig(clip_norm=-1.0), "clip_norm"),
        (lambda: EngineConfig(zero_stage=4), "zero_stage"),
        (lambda: GroupSettings(lr_scale=0.0), "lr_scale"),
        (lambda: GroupSettings(weight_decay=-0.1), "weight_decay"),
    ],
)
def test_impossible_settings_are_refused(settings, what):
    with pytest.raises(ValueError, match=what):
        settings()


@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
def test_a_step_is_that_of_torch_with_clipping(clip_norm):
    engine = make_torch_engine(clip_norm=clip_norm)
    reference = make_objective()
    adam = torch.optim.AdamW(reference.parameters(), lr=0.003, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0)
    for step in range(3):
        adam.zero_grad()
        loss = reference(make_batch(step, 0))
        (loss.total / loss.num_tokens).backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), clip_norm or math.inf).item()
        adam.step()
        engine.forward_backward(make_batch(step, 0), scale=1.0 / loss.num_tokens, last=True)
        assert engine.step(0.003).grad_norm == pytest.approx(norm, rel=1e-5)
    for name, weight in engine.weights().items():
        torch.testing.assert_close(weight, reference.state_dict()[name], rtol=0, atol=1e-5)


def test_weights_are_named_as_in_the_module_and_stay_fp32():
    engine = make_torch_engine(Precision.bf16)
    before = make_objective()
    assert_equal(engine.weights(), before.state_dict())  # not rounded to bf16
    assert {weight.dtype for weight in engine.weights().values()} == {torch.float32}


@pytest.mark.parametrize("precision", list(TORCH_DTYPES))
def test_four_micro_batches_are_one_large_one(precision):
    def gradient(parts: int) -> torch.Tensor:
        engine = make_torch_engine(precision)
        batches = [make_batch(4 * i, 0) for i in range(4)]  # all of one length
        for part in range(parts):
            mine = batches[part * 4 // parts : (part + 1) * 4 // parts]
            batch = torch.cat([tokens for tokens, _ in mine]), torch.cat([labels for _, labels in mine])
            engine.forward_backward(batch, scale=1 / 24, last=part == parts - 1)
        return engine._optimizer.gradient / engine._loss_scale.value

    # In 16 bits the parts are rounded each, not their sum.
    tolerance = {Precision.fp32: 1e-6, Precision.bf16: 2e-2, Precision.fp16: 2e-3}[precision]
    one, four = gradient(1), gradient(4)
    assert (one - four).norm() <= tolerance * one.norm()


def test_gradients_accumulate_in_fp32():
    engine = make_torch_engine(Precision.bf16)
    for index in range(256):
        engine.forward_backward(make_batch(1, 0), scale=1.0, last=index == 255)
    many = engine._optimizer.gradient.clone()
    engine = make_torch_engine(Precision.bf16)
    engine.forward_backward(make_batch(1, 0), scale=1.0, last=True)
    assert torch.equal(many, 256 * engine._optimizer.gradient)  # bf16 sums would stop growing after 8 bits


@pytest.mark.parametrize("precision", list(TORCH_DTYPES))
def test_resuming_is_never_having_stopped(precision):
    straight = make_torch_engine(precision, clip_norm=0.5)
    take_steps(straight, 0, 3)
    state = straight.state()
    resumed = make_torch_engine(precision, clip_norm=0.5, initial=state, module=make_objective(seed=1))
    assert take_steps(straight, 3, 6) == take_steps(resumed, 3, 6)
    assert straight.state().scalars == resumed.state().scalars
    assert_equal(straight.state().tensors, resumed.state().tensors)


class Sparing(Objective):
    """Short micro-batches do not use one of the parameters, or use it with a gradient of 0."""

    def __init__(self, uses_zero: bool) -> None:
        super().__init__()
        self.uses_zero = uses_zero

    def forward(self, batch):
        gain = self.model.gain
        gain.requires_grad_(batch[0].shape[1] > 4)
        loss = super().forward(batch)
        gain.requires_grad_(True)
        return LossSum(loss.total + 0.0 * gain.sum(), loss.num_tokens) if self.uses_zero else loss


def test_a_parameter_that_is_not_used_has_a_gradient_of_0():
    start = make_torch_engine().state()
    weights = []
    for uses_zero in (False, True):
        engine = make_torch_engine(module=Sparing(uses_zero), initial=start)
        take_steps(engine, 0, 3)  # long and short micro-batches
        for step in (0, 4):
            engine.forward_backward(make_batch(step, 0), scale=1.0, last=True)  # short ones only
            engine.step(0.003)
        weights.append(engine.weights())
    assert_equal(*weights)


class Spoiled(Objective):
    """Its gradient is not finite when told so."""

    factor = 1.0

    def forward(self, batch):
        loss = super().forward(batch)
        return LossSum(loss.total * self.factor, loss.num_tokens)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_without_a_finite_gradient_changes_nothing(factor):
    module = Spoiled()
    engine = make_torch_engine(Precision.bf16, module=module)
    take_steps(engine, 0, 2)
    before = engine.state()
    module.factor = factor
    (result,) = take_steps(engine, 2, 3)
    assert result.skipped
    assert_equal(engine.state().tensors, before.tensors)
    assert engine.state().scalars == before.scalars
    module.factor = 1.0
    assert not take_steps(engine, 3, 4)[0].skipped


def test_fp16_overflow_halves_the_scale_until_it_can_not():
    module = Spoiled()
    engine = make_torch_engine(Precision.fp16, module=module, initial_scale_power=4, min_loss_scale=2.0)
    module.factor = math.inf
    assert [result.loss_scale for result in take_steps(engine, 0, 3)] == [16.0, 8.0, 4.0]
    with pytest.raises(UserError, match=r"smallest loss scale, 2 .*precision\.min_loss_scale.*bf16"):
        take_steps(engine, 3, 4)


def test_fp16_scale_doubles_after_a_calm_window_and_is_resumed():
    engine = make_torch_engine(Precision.fp16, initial_scale_power=4, scale_window=3)
    assert [result.loss_scale for result in take_steps(engine, 0, 5)] == [16.0, 16.0, 16.0, 32.0, 32.0]
    resumed = make_torch_engine(Precision.fp16, initial_scale_power=4, scale_window=3, initial=engine.state())
    assert [result.loss_scale for result in take_steps(resumed, 5, 7)] == [32.0, 64.0]


def test_a_state_of_another_model_is_refused():
    state = make_torch_engine().state()
    lacking = {name: tensor for name, tensor in state.tensors.items() if name != "exp_avg/model.norm.bias"}
    with pytest.raises(UserError, match=r"exp_avg/model\.norm\.bias is in the model but not in the checkpoint"):
        make_torch_engine(initial=EngineState(lacking, state.scalars))
    reshaped = {**state.tensors, "weights/model.gain": torch.ones(8)}
    with pytest.raises(UserError, match=r"weights/model\.gain has shape \[8\], the model \[7\]"):
        make_torch_engine(initial=EngineState(reshaped, state.scalars))


def train_plainly(module: nn.Module, groups: list[dict], steps: int = 6) -> dict[str, torch.Tensor]:
    """The weights after so many steps at the toy's rate with torch's own AdamW; `lr` of a group is a factor on it."""
    for group in groups:
        group["lr"] = group.get("lr", 1.0) * 0.003
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.0)
    for step in range(steps):
        batches = [make_batch(step, index) for index in range(MICRO_BATCHES)]
        tokens = sum(labels.numel() for _, labels in batches)
        adam.zero_grad()
        for batch in batches:
            (module(batch).total / tokens).backward()
        adam.step()
    return module.state_dict()


def assert_close(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Adam magnifies the rounding of gradients near 0."""
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-5)


class Positioned(Objective):
    """Also with learned positions, and with an output matrix that is not tied."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(6, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)

    def forward(self, batch):
        loss = super().forward(batch)
        return LossSum(loss.total + self.output(self.positions.weight).tanh().sum(), loss.num_tokens)


def make_positioned() -> Positioned:
    torch.manual_seed(3)
    return Positioned()


def test_weight_decay_is_for_matrices_alone():
    module = make_positioned()
    settings = decay_groups(module, 0.3)
    decayed = {n for n, p in module.named_parameters() if settings(n, p) == GroupSettings(weight_decay=0.3)}
    assert decayed == {"model.hidden.weight", "output.weight"}
    named = dict(module.named_parameters())
    assert settings("model.embedding.weight", named["model.embedding.weight"]) == GroupSettings()

    engine = make_torch_engine(module=module, weight_decay=0.3)
    take_steps(engine, 0, 6)
    reference = make_positioned()
    matrices = [reference.model.hidden.weight, reference.output.weight]
    others = [p for p in reference.parameters() if all(p is not matrix for matrix in matrices)]
    expected = train_plainly(reference, [{"params": matrices, "weight_decay": 0.3}, {"params": others}])
    assert_close(engine.weights(), expected)


def test_without_weight_decay_there_is_one_group_in_the_module_s_order():
    module = make_objective()
    engine = make_torch_engine(module=module)
    assert len(engine._optimizer.param_groups) == 1
    assert list(engine._optimizer.shapes()) == [name for name, _ in module.named_parameters()]


@pytest.mark.parametrize("precision", list(TORCH_DTYPES))
def test_resuming_with_groups_and_frozen_parameters_is_never_having_stopped(precision):
    def engine(initial=None, seed=0) -> TorchEngine:
        module = make_objective(seed)
        freeze(module)
        return make_torch_engine(precision, 0.5, initial, module, groups=slower_below)

    straight = engine()
    take_steps(straight, 0, 3)
    resumed = engine(straight.state(), seed=1)
    assert take_steps(straight, 3, 6) == take_steps(resumed, 3, 6)
    assert_equal(straight.state().tensors, resumed.state().tensors)
    before = make_objective().state_dict()
    for name in FROZEN:
        assert torch.equal(straight.weights()[name], before[name])  # fp32, whatever the compute type
        assert f"exp_avg/{name}" not in straight.state().tensors
        assert torch.equal(dict(resumed._module.named_parameters())[name], before[name].to(TORCH_DTYPES[precision]))


def test_frozen_parameters_stay_and_the_others_train_as_in_plain_torch():
    module, reference = make_objective(), make_objective()
    for one in (module, reference):
        freeze(one)
    engine = make_torch_engine(module=module, weight_decay=0.3)
    take_steps(engine, 0, 6)
    named = dict(reference.named_parameters())
    others = [p for name, p in named.items() if name not in (*FROZEN, "model.hidden.weight")]
    matrix = {"params": [named["model.hidden.weight"]], "weight_decay": 0.3}
    assert_close(engine.weights(), train_plainly(reference, [matrix, {"params": others}]))


def test_a_group_has_a_rate_of_its_own():
    engine = make_torch_engine(groups=slower_below)
    start = engine.weights()
    take_steps(engine, 0, 1)
    whole = make_torch_engine()
    take_steps(whole, 0, 1)
    for name, weight in engine.weights().items():  # from the same gradient: a share of the step
        moved = whole.weights()[name] - start[name]
        torch.testing.assert_close(weight - start[name], rate_factor(name) * moved, rtol=0, atol=1e-6)
    take_steps(engine, 1, 6)
    reference = make_objective()
    one_each = [{"params": [p], "lr": rate_factor(name)} for name, p in reference.named_parameters()]
    assert_close(engine.weights(), train_plainly(reference, one_each))


def test_a_module_that_is_all_frozen_is_refused():
    with pytest.raises(ValueError, match=r"^module: "):
        make_torch_engine(module=make_objective().requires_grad_(False))


def test_a_state_with_other_frozen_parameters_is_refused():
    state = make_torch_engine().state()
    module = make_objective()
    freeze(module)
    with pytest.raises(UserError, match=r"exp_avg\w*/model\.\w+\.\w+ is in the checkpoint but not in the model"):
        make_torch_engine(module=module, initial=state)


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that work's new tensors take at one time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events), default=0)


def on_two_ranks(state: EngineState) -> list[dict]:
    rank = torch.distributed.get_rank()
    found = []
    for start in (None, state):
        # Ranks that differ, by mistake or for want of a checkpoint, follow rank 0.
        initial = start if rank == 0 else None
        module = make_objective(seed=rank)
        engine = make_torch_engine(initial=initial, module=module)
        results = take_steps(engine, 3 if start else 0, 6, rank, 2)
        with pytest.raises(UserError) as refusal:
            engine.load_state(EngineState({}, {}))
        weights, state = engine.weights(), engine.state()
        found.append(
            {
                "results": results,
                "weights": weights,
                "parameters": {name: p.detach().clone() for name, p in module.named_parameters()},
                "state": state,
                "refusal": str(refusal.value),
                "peak_bytes": (peak_bytes(engine.weights), peak_bytes(engine.state)),
            }
        )
    return found


def test_two_ranks_give_the_weights_of_one():
    one = make_torch_engine()
    take_steps(one, 0, 3)
    state = one.state()
    results = take_steps(one, 3, 6)
    for first, second in zip(*run_ranks(on_two_ranks, 2, state), strict=True):
        assert_equal(first["parameters"], second["parameters"])
        assert second["weights"] == {}  # rank 0 alone writes a snapshot
        size = sum(weight.nbytes for weight in first["weights"].values())
        assert size <= first["peak_bytes"][0] < 1.1 * size and max(second["peak_bytes"]) < 0.01 * size
        assert first["results"][-1].grad_norm == pytest.approx(results[-1].grad_norm, rel=1e-5)
        for name, weight in one.weights().items():  # Adam magnifies the rounding of gradients near 0
            torch.testing.assert_close(first["weights"][name], weight, rtol=0, atol=1e-5)
        assert first["state"].scalars == {"adam_step": 6} and not second["state"].tensors
        assert "another model" in first["refusal"] and "another model" in second["refusal"]  # none is left waiting
