"""Linear attention in chunks is the same as its quadratic form."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import transloom.model.linear_attention
from transloom.model.attention import SelfAttention
from transloom.model.config import Attention, DecoderConfig, FeatureMap, Positions
from transloom.model.decoder_only import DecoderOnly
from transloom.model.flops import count_parameters
from transloom.model.grid import Grid
from transloom.model.linear_attention import EluFeatures, RandomFeatures, RunningSums, attend_linear
from transloom.model.packing import Layout

WIDTH, HEADS = 16, 4


def reference(attention: SelfAttention, x: Tensor, lengths: list[int], causal: bool, is_random: bool) -> Tensor:
    """Text by text, with all weights."""
    contexts = []
    for text in attention.query_key_value(x).split(lengths):
        query, key, value = (
            part.unflatten(1, (-1, WIDTH // HEADS)).transpose(0, 1) for part in text.split(attention.widths, dim=1)
        )
        key, value = (part.repeat_interleave(HEADS // len(part), dim=0) for part in (key, value))
        if is_random:
            assert isinstance(attention.features, RandomFeatures)
            vectors = attention.features.vectors
            scaled = [part / 4**0.25 for part in (query, key)]
            query, key = ((part @ vectors.T - part.square().sum(-1, keepdim=True) / 2).exp() for part in scaled)
        else:
            query, key = (torch.where(part > 0, part + 1, part.exp()) for part in (query, key))
        weights = query @ key.mT
        weights = weights.tril() if causal else weights
        weights = weights / weights.sum(-1, keepdim=True)
        contexts.append((weights @ value).transpose(0, 1).flatten(1))
    return attention.output(torch.cat(contexts))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("is_random", [False, True], ids=["elu", "favor"])
@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("chunk", [1, 8, 128])
def test_chunked_sums_are_the_quadratic_form(
    causal: bool, is_random: bool, groups: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of several chunks, of whole chunks, and of one; forward and backward, in fp32."""
    monkeypatch.setattr(transloom.model.linear_attention, "CHUNK", chunk)
    monkeypatch.setattr(transloom.model.linear_attention, "LEAST_FEATURE", 0.0)
    torch.manual_seed(0)
    lengths = [29, 16, 5, 1]
    features = RandomFeatures(4, 11, layer=0) if is_random else EluFeatures()
    attention = SelfAttention(WIDTH, HEADS, 4, 4, groups, features=features)
    x = torch.randn(sum(lengths), WIDTH, requires_grad=True)
    grid = Grid(Layout.of(torch.tensor(lengths)), HEADS, x.dtype)
    inputs = [x, *attention.parameters()]
    out, expected = attention(x, grid, causal), reference(attention, x, lengths, causal, is_random)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    scale = torch.randn_like(out)
    gradients = torch.autograd.grad((out * scale).sum(), inputs), torch.autograd.grad((expected * scale).sum(), inputs)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_gradient_is_the_one_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transloom.model.linear_attention, "CHUNK", 2)
    torch.manual_seed(0)
    query, key = (torch.rand(1, heads, 5, 3, dtype=torch.float64, requires_grad=True) for heads in (2, 1))
    value = torch.randn(1, 1, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, k, v: attend_linear(q, k, v, causal=True), (query, key, value))


def test_the_backward_pass_keeps_no_weights() -> None:
    """Of texts twice as long twice as much is kept: no tensor grows with the square, nor has chunk * L elements."""
    kept = []
    for length in (1024, 2048):
        query, key, value = (torch.rand(1, 1, length, 4, requires_grad=True) for _ in range(3))
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = attend_linear(query, key, value, causal=True)
        kept.append(sum(sizes.values()))
        assert out.shape == (1, 1, length, 4)
    assert kept[1] == 2 * kept[0] < 2048 * 4 * 4 * 8


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("is_random", [False, True])
def test_weights_sum_to_one_and_give_the_context(causal: bool, is_random: bool) -> None:
    torch.manual_seed(0)
    features = RandomFeatures(4, 11, layer=0) if is_random else EluFeatures()
    attention = SelfAttention(WIDTH, HEADS, 4, 4, 2, features=features)
    x, grid = torch.randn(17, WIDTH), Grid(Layout.of(torch.tensor([12, 5])), HEADS, torch.float32)
    weights = attention.weights(x, grid, causal)
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(HEADS, 12))
    assert (weights[1, :, :, 5:] == 0).all() or causal
    values = attention.query_key_value(x)[:12].split(attention.widths, dim=1)[2].unflatten(1, (2, 4)).transpose(0, 1)
    out = attention.output((weights[0] @ values.repeat_interleave(2, dim=0)).transpose(0, 1).flatten(1))
    torch.testing.assert_close(out, attention(x, grid, causal)[:12], rtol=0, atol=1e-6)


def test_many_random_features_come_near_softmax() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 30, 16) / 2, torch.randn(2, 1, 30, 16) / 2
    exact = (query @ key.mT / math.sqrt(16)).softmax(-1)
    errors = []
    for num_features in (16, 256, 4096):
        features = RandomFeatures(16, num_features, layer=0)
        weights = features.of_queries(query) @ features.of_keys(key).mT
        errors.append((weights / weights.sum(-1, keepdim=True) - exact).abs().mean().item())
    assert errors[2] < errors[1] / 2 < errors[0] / 4
    assert errors[2] < 0.05 * exact.mean()


def test_random_features_are_orthogonal_and_the_same_everywhere() -> None:
    vectors = RandomFeatures(8, 20, layer=3).vectors
    assert vectors.shape == (20, 8)
    products = vectors[:8] @ vectors[:8].T
    torch.testing.assert_close(products, products.diagonal().diag(), rtol=0, atol=1e-4)
    assert vectors.square().sum(1).mean().item() == pytest.approx(8, rel=0.3)
    state = torch.get_rng_state()
    assert torch.equal(RandomFeatures(8, 20, layer=3).vectors, vectors)
    assert torch.equal(torch.get_rng_state(), state), "the weights' random numbers must not depend on the features"
    assert not torch.equal(RandomFeatures(8, 20, layer=4).vectors, vectors)


@pytest.mark.parametrize("factor", [0.0, 100.0])
def test_extreme_queries_and_keys_stay_finite(factor: float) -> None:
    torch.manual_seed(0)
    x = (factor * torch.randn(1, 1, 9, 64)).requires_grad_()
    for features in (RandomFeatures(64, 64, layer=0), EluFeatures()):
        out = attend_linear(features.of_queries(x), features.of_keys(x), x, causal=True)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        assert out.isfinite().all()
        assert gradient.isfinite().all()


def test_sums_are_fp32_for_a_model_in_16_bits() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(WIDTH, HEADS, 4, 4, features=EluFeatures())
    nn.init.zeros_(attention.query_key_value.weight)
    attention.query_key_value.bias.data[2 * WIDTH :] = 1.0
    nn.init.eye_(attention.output.weight)
    nn.init.zeros_(attention.output.bias)
    attention, length = attention.bfloat16(), 3000
    grid = Grid(Layout.of(torch.tensor([length])), HEADS, torch.bfloat16)
    x = torch.ones(length, WIDTH, dtype=torch.bfloat16)
    state = attention.start()
    assert torch.equal(attention(x, grid, True, state), x)  # 3,000 ones, which bf16 can't count
    assert isinstance(state, RunningSums)
    assert state._sums is not None
    assert state._sums.dtype is torch.float32
    assert torch.equal(attention.step(x[:1], state), x[:1])


def test_the_state_does_not_grow() -> None:
    state = RunningSums()
    for _ in range(50):
        state.step(torch.rand(2, 1, 1, 4), torch.rand(2, 1, 4), torch.rand(2, 1, 3))
    assert state._sums is not None
    assert state._sums.shape == (2, 1, 4, 4)


def test_a_model_has_the_weights_of_one_with_softmax() -> None:
    """The same names, shapes and first values; the features are no weights, and differ from layer to layer."""
    full = DecoderConfig(layers=2, d_model=16, d_ff=8, num_heads=4)
    favor = replace(full, attention=Attention.linear, feature_map=FeatureMap.favor, random_features=5)
    models = []
    for config in (full, favor, replace(full, attention=Attention.window), replace(full, positions=Positions.alibi)):
        torch.manual_seed(3)
        models.append(DecoderOnly(config, 9))
    for other in models[1:3]:
        assert list(other.state_dict()) == list(models[0].state_dict())
        for one, same in zip(other.state_dict().values(), models[0].state_dict().values(), strict=True):
            assert torch.equal(one, same)
    assert set(models[0].state_dict()) - set(models[3].state_dict()) == {"learned_positions.weight"}
    assert count_parameters(favor, 9) == count_parameters(full, 9)  # on torch's device "meta"
    first, second = (name for name, _ in models[1].named_buffers() if name.endswith("features.vectors"))
    assert not torch.equal(models[1].get_buffer(first), models[1].get_buffer(second))
