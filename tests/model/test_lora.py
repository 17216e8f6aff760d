"""Adapters change a layer as their product with B says, and merging them changes nothing."""

import pytest
import torch

from transloom.model.build import build_model
from transloom.model.config import (
    Activation,
    DecoderConfig,
    Norm,
    Normalization,
    Positions,
    RecurrentConfig,
    TransformerConfig,
)
from transloom.model.lora import AdaptedLayers, LoraConfig, LoraLinear, add_adapters, merge_adapters
from transloom.model.packing import Layout

VOCAB = 31
TRANSLATOR = TransformerConfig(d_model=24, d_ff=40, num_heads=4, encoder_layers=2, decoder_layers=2, dropout=0.0)
GPT = DecoderConfig(layers=2, d_model=24, d_ff=40, num_heads=4, dropout=0.0, max_positions=16)
LLAMA = DecoderConfig(
    layers=2,
    d_model=24,
    d_ff=40,
    num_heads=4,
    key_value_heads=2,
    dropout=0.0,
    max_positions=16,
    normalization=Normalization.rms,
    activation=Activation.swiglu,
    positions=Positions.rotary,
    bias=False,
)
MODELS = [TRANSLATOR, TransformerConfig(**{**TRANSLATOR.__dict__, "norm": Norm.pre}), GPT, LLAMA]
LORA = LoraConfig(rank=3, alpha=6.0)


def layout(lengths: list[int]) -> Layout:
    return Layout.of(torch.tensor(lengths))


def output(model) -> torch.Tensor:
    tokens = torch.arange(9) % VOCAB
    model.eval()
    with torch.no_grad():
        if isinstance(model.config, DecoderConfig):
            return model.logits(model(tokens, layout([4, 5])))
        return model.logits(model(tokens, layout([4, 5]), tokens[:7], layout([3, 4])))


def adapted(config, lora: LoraConfig = LORA, is_trained: bool = True):
    torch.manual_seed(0)
    model = build_model(config, VOCAB)
    add_adapters(model, lora)
    if is_trained:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("lora_b"):
                    parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("config", MODELS)
def test_a_model_with_fresh_adapters_computes_what_it_did_before(config):
    torch.manual_seed(0)
    assert torch.equal(output(build_model(config, VOCAB)), output(adapted(config, is_trained=False)))


@pytest.mark.parametrize("config", MODELS)
def test_merged_weights_compute_what_the_adapters_do(config):
    model = adapted(config)
    merged = build_model(config, VOCAB)
    merged.load_state_dict(merge_adapters(model.state_dict(), LORA.scale))  # no other names
    torch.manual_seed(0)
    plain = build_model(config, VOCAB)
    assert (output(model) - output(plain)).abs().max() > 1e-2
    assert (output(model) - output(merged)).abs().max() < 1e-5


def test_the_product_is_that_of_the_paper():
    linear = dict(adapted(GPT).named_modules())["layers.0.feed_forward.inner"]
    assert isinstance(linear, LoraLinear)
    x = torch.randn(5, 24)
    expected = x @ (linear.weight + 6.0 / 3 * linear.lora_b @ linear.lora_a).T + linear.bias
    torch.testing.assert_close(linear(x), expected)
    assert linear.lora_a.shape == (3, 24) and linear.lora_b.shape == (40, 3)


@pytest.mark.parametrize(
    ("config", "layers", "count"),
    [
        (TRANSLATOR, "all", 2 * (2 + 2) + 2 * (2 + 3 + 2)),
        (TRANSLATOR, "attention", 2 * 2 + 2 * (2 + 3)),
        (TRANSLATOR, "feed_forward", 8),
        (GPT, "all", 8),
        (GPT, "attention", 4),
        (RecurrentConfig(d_model=16), "all", 0),
    ],
)
def test_the_layers_that_get_adapters(config, layers, count):
    model = build_model(config, VOCAB)
    assert add_adapters(model, LoraConfig(rank=2, layers=AdaptedLayers(layers))) == count
    assert sum(name.endswith("lora_a") for name, _ in model.named_parameters()) == count


def test_weights_without_adapters_stay_as_they_are():
    weights = build_model(GPT, VOCAB).state_dict()
    merged = merge_adapters(weights, 1.0)
    assert list(merged) == list(weights) and all(merged[name] is weights[name] for name in weights)


@pytest.mark.parametrize(("settings", "field"), [({"rank": -1}, "rank"), ({"alpha": 0.0}, "alpha")])
def test_settings_that_make_no_adapters_are_refused(settings, field):
    with pytest.raises(ValueError, match=rf"^{field}: "):
        LoraConfig(**settings)
