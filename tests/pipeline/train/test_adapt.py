"""Frozen layers, adapters and rates by depth: what trains, what stays, and that a resumed training is the same."""

import dataclasses

import pytest
import torch
from ranks import run_ranks

from transloom.model.build import build_model
from transloom.model.config import DecoderConfig, Norm, Positions, RecurrentConfig, TransformerConfig
from transloom.model.lora import LoraConfig, merge_adapters
from transloom.model.packing import Layout
from transloom.pipeline.data.pairs import PairBatch
from transloom.pipeline.errors import UserError
from transloom.pipeline.train.adapt import adapt, adapted_groups, count_trained, depths_from_the_top
from transloom.pipeline.train.checkpoint import load_checkpoint, save_checkpoint
from transloom.pipeline.train.engine import EngineConfig, EngineName, make_engine
from transloom.pipeline.train.objective import TranslationObjective
from transloom.pipeline.train.optimizer import OptimizerConfig, Precision, PrecisionConfig
from transloom.pipeline.train.session import TrainConfig

VOCAB = 50
TRANSLATOR = TransformerConfig(
    d_model=16, d_ff=24, num_heads=2, encoder_layers=3, decoder_layers=2, dropout=0.0, norm=Norm.pre
)
GPT = DecoderConfig(layers=3, d_model=16, d_ff=24, num_heads=2, dropout=0.0, positions=Positions.learned)
FROZEN = TrainConfig(initial="x", frozen_layers=1)
ADAPTED = TrainConfig(initial="x", lora=LoraConfig(rank=2))
DECAYED = TrainConfig(initial="x", layer_decay=0.5)


def model_of(config, train: TrainConfig, lacking: tuple[str, ...] = (), seed: int = 0):
    torch.manual_seed(seed)
    model = build_model(config, VOCAB)
    adapt(model, train, {name for name, _ in model.named_parameters() if name not in lacking})
    return model


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("config", "layers", "stacks"),
    [(TRANSLATOR, 1, {"encoder.1", "encoder.2", "decoder.1"}), (TRANSLATOR, 2, {"encoder.2"}), (GPT, 2, {"layers.2"})],
)
def test_embeddings_and_the_first_layers_of_each_stack_are_frozen(config, layers, stacks):
    model = model_of(config, dataclasses.replace(FROZEN, frozen_layers=layers))
    assert {".".join(name.split(".")[:2]) for name in trained(model) if "norm" not in name.split(".")[0]} == stacks
    assert not {"embedding.weight", "learned_positions.weight"} & trained(model)


def test_without_frozen_layers_all_train_and_an_untied_projection_always_does():
    assert len(trained(model_of(GPT, DECAYED))) == len(list(build_model(GPT, VOCAB).parameters()))
    untied = dataclasses.replace(GPT, tied=False)
    assert "output" in trained(model_of(untied, dataclasses.replace(FROZEN, frozen_layers=3)))


def test_random_weights_are_not_frozen():
    with pytest.raises(UserError, match=r"^train\.frozen_layers: 1 would freeze embedding\.weight"):
        model_of(GPT, FROZEN, lacking=("embedding.weight",))
    with pytest.raises(UserError, match=r"^train\.frozen_layers: .*nothing is left"):
        model_of(dataclasses.replace(GPT, norm=Norm.post), dataclasses.replace(FROZEN, frozen_layers=3))


def test_adapters_train_and_so_do_weights_that_the_initial_model_lacks():
    model = model_of(GPT, ADAPTED, lacking=("embedding.weight",))
    assert {name for name in trained(model) if not name.endswith(("lora_a", "lora_b"))} == {"embedding.weight"}
    # By layer: A and B of query_key_value, output, inner and outer.
    adapters = 3 * 2 * ((16 + 48) + (16 + 16) + (16 + 24) + (24 + 16))
    plain = sum(parameter.numel() for parameter in build_model(GPT, VOCAB).parameters())
    assert count_trained(model) == (adapters + 16 * VOCAB, plain + adapters)


def test_an_lstm_has_no_layers_for_adapters():
    with pytest.raises(UserError, match=r"^train\.lora\.rank: "):
        model_of(RecurrentConfig(d_model=16), ADAPTED)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"frozen_layers": 1}, "frozen_layers"),
        ({"lora": LoraConfig(rank=1)}, r"lora\.rank"),
        ({"initial": "x", "frozen_layers": -1}, "frozen_layers"),
        ({"initial": "x", "frozen_layers": 1, "lora": LoraConfig(rank=1)}, "frozen_layers"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"layer_decay": 1.1}, "layer_decay"),
    ],
)
def test_contradictions_are_refused(settings, field):
    with pytest.raises(ValueError, match=rf"^{field}: "):
        TrainConfig(**settings)


def test_the_depth_counts_the_layers_above_in_the_own_stack():
    names = [name for name, _ in build_model(TRANSLATOR, VOCAB).named_parameters()]
    depths = depths_from_the_top(names)
    assert depths["encoder.0.feed_forward.inner.weight"] == 2 and depths["encoder.2.feed_forward.inner.weight"] == 0
    assert depths["decoder.0.cross_attention.query.weight"] == 1 and depths["decoder_norm.weight"] == 0
    assert depths["embedding.weight"] == 3
    assert depths_from_the_top(["model.body.layers.1.x", "model.body.layers.0.x", "model.head.weight"]) == {
        "model.body.layers.1.x": 0,
        "model.body.layers.0.x": 1,
        "model.head.weight": 0,
    }


def test_a_lower_layer_has_a_lower_rate_and_the_same_weight_decay():
    model = build_model(TRANSLATOR, VOCAB)
    groups = adapted_groups(model, 0.1, 0.5)
    rates = {name: groups(name, parameter) for name, parameter in model.named_parameters()}
    assert rates["encoder.0.feed_forward.inner.weight"].lr_scale == 0.25
    assert rates["embedding.weight"].lr_scale == 0.125 and rates["embedding.weight"].weight_decay == 0.0
    assert rates["decoder_norm.bias"].lr_scale == 1.0
    assert rates["encoder.0.feed_forward.inner.weight"].weight_decay == 0.1


# With the engines


def batch_of(seed: int) -> PairBatch:
    tokens = torch.randint(4, VOCAB, (12,), generator=torch.Generator().manual_seed(seed))
    layout = Layout.of(torch.tensor([5, 7]))
    return PairBatch(tokens, layout, tokens.roll(1), layout, tokens, 12)


def engine_of(train: TrainConfig, stage: int | None, initial=None, seed: int = 0):
    """An engine whose frozen weights are those of seed 0, as a run's folder keeps them."""
    torch.manual_seed(seed)
    model = build_model(TRANSLATOR, VOCAB)
    torch.manual_seed(0)
    given = build_model(TRANSLATOR, VOCAB).state_dict()
    model.load_state_dict(given)
    adapt(model, train, given)
    objective = TranslationObjective(model, 0.1).train()
    groups = adapted_groups(objective, 0.01, train.layer_decay)
    name = EngineConfig(EngineName.torch) if stage is None else EngineConfig(EngineName.deepspeed, stage)
    optimizer = OptimizerConfig(clip_norm=1.0, weight_decay=0.01)
    precision = PrecisionConfig(Precision.fp32)
    return make_engine(objective, optimizer, precision, name, torch.device("cpu"), initial, groups)


def steps(engine, first: int, last: int, rank: int = 0, world_size: int = 1) -> None:
    for step in range(first, last):
        mine = [2 * step, 2 * step + 1][rank::world_size]
        for number, seed in enumerate(mine, start=1):
            engine.forward_backward(batch_of(seed), scale=1 / 24, last=number == len(mine))
        engine.step(0.01)


TRAININGS = {"frozen": FROZEN, "adapted": ADAPTED, "decayed": DECAYED}


def go_on_from_a_checkpoint(folder, stages=(0, 1, 2, 3)) -> dict:
    """By training and stage: the weights of four steps, and of two and two with a checkpoint between them."""
    from torch import distributed as dist

    rank, world_size = dist.get_rank(), dist.get_world_size()
    found = {}
    for stage in stages:
        for name, train in TRAININGS.items():
            straight = engine_of(train, stage)
            steps(straight, 0, 2, rank, world_size)
            state = straight.state()
            place = folder / f"{name}-{stage}"
            if rank == 0:
                save_checkpoint(place, 2, state, {}, {}, keep=1)
            steps(straight, 2, 4, rank, world_size)
            saved = load_checkpoint(place / "step_00000002")[0] if rank == 0 else None
            again = engine_of(train, stage, saved, seed=5)
            steps(again, 2, 4, rank, world_size)
            found[name, stage] = (straight.weights(), again.weights())
    return found


@pytest.fixture(scope="module")
def plain() -> dict:
    """Four steps of plain torch on one rank, by training."""
    found = {}
    for name, train in TRAININGS.items():
        engine = engine_of(train, None)
        steps(engine, 0, 4)
        found[name] = engine.weights()
    return found


@pytest.mark.slow
def test_every_zero_stage_does_what_plain_torch_does_and_resumes_bit_for_bit(plain, tmp_path):
    begun = {name: engine_of(train, None).weights() for name, train in TRAININGS.items()}
    found = run_ranks(go_on_from_a_checkpoint, 2, tmp_path)[0]
    assert len(found) == 12
    for (name, stage), (straight, again) in found.items():
        assert straight.keys() == plain[name].keys() == again.keys()
        for weight, tensor in straight.items():
            assert torch.equal(tensor, again[weight]), (name, stage, weight)
        # The bias of keys has no gradient but what rounding leaves, which Adam makes as large as any other.
        moving = [weight for weight in straight if not weight.endswith(("query_key_value.bias", "key_value.bias"))]
        apart = sum(float((straight[weight] - plain[name][weight]).norm()) ** 2 for weight in moving)
        moved = sum(float((plain[name][weight] - begun[name][weight]).norm()) ** 2 for weight in moving)
        assert apart < 1e-4 * moved, (name, stage, apart, moved)


@pytest.mark.parametrize("name", TRAININGS)
def test_plain_torch_resumes_bit_for_bit_from_a_checkpoint_without_frozen_weights(plain, tmp_path, name):
    train = TRAININGS[name]
    engine = engine_of(train, None)
    steps(engine, 0, 2)
    path = save_checkpoint(tmp_path, 2, engine.state(), {}, {}, keep=1)
    state, _ = load_checkpoint(path)
    in_training = {key.partition("/")[2] for key in state.tensors}
    model = model_of(TRANSLATOR, train)
    assert in_training == {f"model.{n}" for n in trained(model)}
    again = engine_of(train, None, state, seed=5)
    steps(again, 2, 4)
    assert all(torch.equal(tensor, again.weights()[key]) for key, tensor in plain[name].items())


def test_what_is_frozen_stays_and_the_snapshot_of_adapters_has_the_plain_names(plain):
    torch.manual_seed(0)
    before = {f"model.{name}": tensor for name, tensor in build_model(TRANSLATOR, VOCAB).state_dict().items()}
    for name in ("model.embedding.weight", "model.encoder.0.feed_forward.inner.weight"):
        assert torch.equal(plain["frozen"][name], before[name])
    assert not torch.equal(
        plain["frozen"]["model.encoder.1.feed_forward.inner.weight"],
        before["model.encoder.1.feed_forward.inner.weight"],
    )
    merged = merge_adapters(plain["adapted"], ADAPTED.lora.scale)
    assert merged.keys() == {n for n in before if "sinusoids" not in n}
    assert torch.equal(merged["model.embedding.weight"], before["model.embedding.weight"])
    changed = "model.encoder.0.feed_forward.inner.weight"
    assert not torch.equal(merged[changed], before[changed]) and torch.equal(plain["adapted"][changed], before[changed])
