"""The products of linear layers by either library: equal to torch's, forward and backward, and chosen by time alone."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from transloom.model.build import build_model
from transloom.model.config import TransformerConfig
from transloom.model.kernels import linear
from transloom.model.kernels.linear import TORCH, Linear, Products, measure_products, quicker_products, use_products
from transloom.model.losses import label_smoothed_cross_entropy

ALL = [Products(*flags) for flags in itertools.product((False, True), repeat=3)]
ONEDNN = Products(True, True, True)

pytestmark = pytest.mark.skipif(not linear._has_onednn(), reason="this torch has no oneDNN operators")


@pytest.fixture(autouse=True)
def torch_as_it_comes() -> Iterator[None]:
    yield
    use_products(TORCH)


def gradients(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    y = layer(x)
    return [y, *torch.autograd.grad((y * y).sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("products", ALL)
@pytest.mark.parametrize("bias", [True, False])
def test_every_choice_gives_torchs_output_and_gradients(products: Products, bias: bool) -> None:
    torch.manual_seed(0)
    layer = Linear(24, 40, bias=bias)
    x = torch.randn(50, 24, requires_grad=True)
    expected = gradients(layer, x)
    use_products(products)
    for ours, theirs in zip(gradients(layer, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("products", [one for one in ALL if sum(one) == 1])
def test_each_product_is_done_by_the_library_that_was_chosen(products: Products, monkeypatch) -> None:
    done = []
    usual = linear.multiply_transposed
    monkeypatch.setattr(
        linear,
        "multiply_transposed",
        lambda x, w, b, by_onednn: (done.append(tuple(x.shape)) if by_onednn else None, usual(x, w, b, by_onednn))[1],
    )
    use_products(products)
    layer = Linear(24, 40)
    gradients(layer, torch.randn(50, 24, requires_grad=True))
    assert done == [{0: (50, 24), 1: (50, 40), 2: (40, 50)}[products.index(True)]]


def test_other_types_and_other_shapes_are_left_to_torch() -> None:
    use_products(ONEDNN)
    layer = Linear(8, 8).bfloat16()
    assert "_Linear" not in str(layer(torch.randn(4, 8).bfloat16().requires_grad_()).grad_fn)
    assert "_Linear" not in str(Linear(8, 8)(torch.randn(2, 4, 8)).grad_fn)
    assert "_Linear" in str(Linear(8, 8)(torch.randn(4, 8)).grad_fn)


def test_the_loss_is_the_same() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(70, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    labels = torch.randint(50, (66,))

    def found() -> list[torch.Tensor]:
        total = label_smoothed_cross_entropy(hidden, weight, labels, 0.1).total
        return [total, *torch.autograd.grad(total, (hidden, weight))]

    expected = found()
    use_products(ONEDNN)
    for ours, theirs in zip(found(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("slow_library", ["mkl", "onednn", None])
def test_onednn_is_chosen_where_it_is_clearly_quicker(slow_library: str | None, monkeypatch) -> None:
    now = [0.0]

    def product(kind: str, x, g, weight, by_onednn: bool):
        seconds = 2.0 if slow_library == ("onednn" if by_onednn else "mkl") else 1.0 + 0.1 * by_onednn
        if kind == "weight_gradient":
            seconds = 1.0

        def multiply() -> None:
            now[0] += seconds

        return multiply

    monkeypatch.setattr(linear, "_product", product)
    monkeypatch.setattr(linear.time, "perf_counter", lambda: now[0])
    expected = Products(True, True, False) if slow_library == "mkl" else TORCH
    assert measure_products([(8, 8), (8, 32)]) == expected


def test_intels_processors_are_not_measured(monkeypatch) -> None:
    model = build_model(TransformerConfig(d_model=16, d_ff=32, num_heads=2, encoder_layers=1, decoder_layers=1), 30)
    asked = []
    monkeypatch.setattr(linear, "measure_products", lambda shapes: asked.append(shapes) or ONEDNN)
    assert quicker_products(model, "GenuineIntel") == TORCH and not asked
    assert quicker_products(model, "AuthenticAMD") == ONEDNN
    assert asked == [[(16, 16), (16, 32), (16, 48), (32, 16)]]


def test_the_real_measurement_gives_a_choice_in_less_than_two_seconds() -> None:
    measured = measure_products([(64, 64), (64, 256)])
    assert isinstance(measured, Products) and set(measured) <= {False, True}
