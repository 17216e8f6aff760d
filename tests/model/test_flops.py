from dataclasses import replace

import pytest

from transloom.model.config import Attention, DecoderConfig, FeatureMap, TransformerConfig
from transloom.model.flops import attention_flops, count_parameters, multiply_adds, training_flops


def test_base_and_big_cost_what_the_published_formulas_say() -> None:
    """84 d^2 a source token, 84 d^2 + V d a target token, for 6 layers and d_ff = 4 d."""
    for d_model in (512, 1024):
        source, target = multiply_adds(TransformerConfig(d_model=d_model, d_ff=4 * d_model), 37_000)
        assert source == 84 * d_model**2
        assert target == 84 * d_model**2 + 37_000 * d_model


def test_training_base_costs_0_381_gflop_a_token_pair() -> None:
    assert training_flops(TransformerConfig(), 37_000, 1, 1) == pytest.approx(0.381e9, rel=0.01)


def test_a_language_models_token_costs_6_n_and_12_l_d_s() -> None:
    gpt3 = DecoderConfig(layers=96, d_model=12288, d_ff=49152, num_heads=96, max_positions=2048)
    parameters = count_parameters(gpt3, 50_257)
    assert parameters == 174_604_259_328
    assert attention_flops(gpt3) == 12 * 96 * 12288 * 2048
    # Biases, normalisation and positions multiply nothing.
    assert training_flops(gpt3, 50_257, 1) == pytest.approx(6 * parameters + 12 * 96 * 12288 * 2048, rel=3e-4)
    assert training_flops(gpt3, 50_257, 300) == 300 * training_flops(gpt3, 50_257, 1)
    without = (training_flops(gpt3, 50_257, 1) - attention_flops(gpt3)) * 300e9
    assert without == pytest.approx(3.143e23, rel=1e-3)  # Brown et al. 2020, table D.1: 3.14e23


def test_attention_costs_what_its_kind_shows() -> None:
    """Multiply-adds a token and layer: 2 w d within a window, 2 (w + g) d with global tokens, never more than those of
    full attention; F V for each head of queries and of keys of linear attention, F K more for random features."""
    full = DecoderConfig(layers=3, d_model=64, d_ff=64, num_heads=4, key_value_heads=2, max_positions=4096)
    window = replace(full, attention=Attention.window, window=100)
    linear = replace(full, attention=Attention.linear)

    def cost(config: DecoderConfig) -> float:
        return attention_flops(config) / 6 / 3

    assert cost(full) == 2 * 4096 * 64
    assert cost(window) == 2 * 100 * 64
    assert cost(replace(window, global_tokens=28)) == 2 * 128 * 64
    assert cost(replace(window, causal=False)) == 2 * 199 * 64
    assert cost(replace(window, max_positions=50)) == cost(replace(full, max_positions=50))
    assert cost(linear) == (4 + 2) * 16 * 16
    assert cost(replace(linear, max_positions=131_072)) == cost(linear)
    favor = replace(linear, feature_map=FeatureMap.favor, random_features=32)
    assert cost(favor) == (4 + 2) * (32 * 16 + 32 * 16)
    assert training_flops(window, 100, 1) - 6 * multiply_adds(window, 100)[1] == attention_flops(window)
