import pytest

from transloom.model.config import DecoderConfig, TransformerConfig
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
