"""A linear layer's products in training, in fp32 on a CPU, by the quicker of two libraries.

torch multiplies fp32 by MKL, which is slow on some processors that are not Intel's: on an AMD EPYC with AVX-512 it did
96 GFLOP/s a core where oneDNN did 234. Which one is quicker is measured when a training begins, for each of the three
products. The training keeps the choice, since the two libraries round differently.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

ROUNDS = 5
CLEARLY_QUICKER = 1.15  # in every round; less is noise, which must not decide


class Products(NamedTuple):
    """Which products oneDNN does; MKL does the others. N rows, x (N, I), weight (O, I), gradient g (N, O)."""

    output: bool = False  # x weight^T + bias
    input_gradient: bool = False  # g weight
    weight_gradient: bool = False  # g^T x


TORCH = Products()  # torch as it comes
_products = TORCH


def use_products(products: Products) -> None:
    """Has every linear layer of this process multiply so from now on."""
    global _products
    _products = products


def quicker_products(model: nn.Module, vendor: str) -> Products:
    """The quicker products for a model on this processor. On Intel's, where MKL is at home, there is nothing to gain.

    Args:
        vendor: the processor's, as /proc/cpuinfo has it.
    """
    layers = [module for module in model.modules() if isinstance(module, Linear)]
    if vendor == "GenuineIntel" or not layers:
        return TORCH
    return measure_products(sorted({(layer.in_features, layer.out_features) for layer in layers}))


def measure_products(shapes: Sequence[tuple[int, int]], rows: int = 512) -> Products:
    """Times both libraries in turns, in fp32 with torch's threads.

    Args:
        shapes: (I, O) of the layers to be trained. rows: of a product, N.
    Returns:
        where oneDNN is clearly quicker over all of the shapes together.
    """
    if not _has_onednn():
        return TORCH
    seconds = {kind: [[0.0, 0.0] for _ in range(ROUNDS)] for kind in Products._fields}
    for inputs, outputs in shapes:
        x, g, weight = torch.randn(rows, inputs), torch.randn(rows, outputs), torch.randn(outputs, inputs)
        for kind in Products._fields:
            by_library = [_product(kind, x, g, weight, by_onednn) for by_onednn in (False, True)]
            for product in by_library:  # oneDNN prepares a kernel
                product()
            for of_round in seconds[kind]:
                for library, product in enumerate(by_library):
                    started_at = time.perf_counter()
                    product()
                    of_round[library] += time.perf_counter() - started_at
    return Products(*(min(mkl / dnn for mkl, dnn in seconds[kind]) > CLEARLY_QUICKER for kind in Products._fields))


def _product(kind: str, x: Tensor, g: Tensor, weight: Tensor, by_onednn: bool) -> Callable[[], Tensor]:
    match kind:
        case "output":
            return lambda: multiply_transposed(x, weight, None, by_onednn)
        case "input_gradient":
            return lambda: multiply(g, weight, by_onednn)
        case _:
            return lambda: multiply(g.t(), x, by_onednn)


def _has_onednn() -> bool:
    """Whether torch's private operator is there, and does what it is taken to do."""
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    try:
        return torch.equal(multiply_transposed(x, weight, None, True), x @ weight.t())
    except (AttributeError, RuntimeError, TypeError):
        return False


def multiply_transposed(x: Tensor, weight: Tensor, bias: Tensor | None, by_onednn: bool) -> Tensor:
    """x weight^T + bias: (N, I), (O, I), (O,) -> (N, O)"""
    if by_onednn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return functional.linear(x, weight, bias)


def multiply(a: Tensor, b: Tensor, by_onednn: bool) -> Tensor:
    """a b: (N, I), (I, O) -> (N, O)"""
    return multiply_transposed(a, b.t(), None, True) if by_onednn else a @ b


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, products: Products) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.products = products
        return multiply_transposed(x, weight, bias, products.output)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        return (
            multiply(grad, weight, ctx.products.input_gradient) if needs_x else None,
            multiply(grad.t(), x, ctx.products.weight_gradient) if needs_weight else None,
            grad.sum(0) if needs_bias else None,
            None,
        )


def products_for(x: Tensor) -> Products:
    """The products in use, for a factor (N, I)."""
    return _products if x.dtype is torch.float32 and x.device.type == "cpu" and x.dim() == 2 else TORCH


class Linear(nn.Linear):
    """x weight^T + bias by the products in use: (N, I) -> (N, O)."""

    def forward(self, input: Tensor) -> Tensor:
        products = products_for(input)
        if products == TORCH:
            return super().forward(input)
        return _Linear.apply(input, self.weight, self.bias, products)
