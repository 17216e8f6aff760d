import pytest

from model.config import TransformerConfig
from model.flops import multiply_adds, training_flops


def test_base_and_big_cost_what_the_published_formulas_say() -> None:
    """84 d^2 a source token, 84 d^2 + V d a target token, for 6 layers and d_ff = 4 d."""
    for d_model in (512, 1024):
        source, target = multiply_adds(TransformerConfig(d_model=d_model, d_ff=4 * d_model), 37_000)
        assert source == 84 * d_model**2
        assert target == 84 * d_model**2 + 37_000 * d_model


def test_training_base_costs_0_381_gflop_a_token_pair() -> None:
    assert training_flops(TransformerConfig(), 37_000, 1, 1) == pytest.approx(0.381e9, rel=0.01)
