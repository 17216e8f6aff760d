"""Losses as sums: the training loop divides once, by what the step counts on all workers."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from transloom.model.kernels.linear import Products, multiply, multiply_transposed, products_for

# Of logits at a time; on a CPU as many as the cache holds in fp32.
CPU_LOGITS, CPU_ROWS, GPU_ROWS = 320_000, 32, 4096
PART_BYTES = 2**29  # of logits: more are computed in parts
DIVERGENCE_ROWS = 1024  # tokens whose two distributions are compared at a time
LEAST_PROBABILITY = 1e-30  # of a label: the logarithm of a smaller one is not exact


class LossSum(NamedTuple):
    """A loss summed over tokens (nats; a scalar in fp32) and the number of these tokens."""

    total: Tensor
    num_tokens: int


class _SmoothedCrossEntropy(torch.autograd.Function):
    """Replaces logits by their gradient, softmax(z) - q, a few rows at a time while the rows are in the cache. The
    gradient is fp32, no fp32 tensor has [tokens × vocabulary] elements, and a CPU takes half of cross_entropy's time.

    Smoothing adds the same term for all tokens, so the term needs no [tokens × vocabulary] tensor: only a sum of the
    weights over the vocabulary, and a sum of the hidden vectors over the tokens.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        ctx.products, ctx.smoothing, ctx.num_tokens = products_for(hidden), smoothing, len(labels)
        total, difference = _loss_and_difference(hidden, weight, labels, smoothing, ctx.products)
        ctx.save_for_backward(difference, hidden, weight)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        difference, hidden, weight = ctx.saved_tensors
        to_hidden, to_weight = _gradients(
            difference, hidden, weight, ctx.num_tokens, ctx.smoothing, ctx.products, ctx.needs_input_grad[1]
        )
        return to_hidden.mul_(grad), None if to_weight is None else to_weight.mul_(grad), None, None


class _InParts(torch.autograd.Function):
    """The same a part of the rows at a time, where all logits would be large. The forward pass makes the gradients too,
    so that no part is computed twice; the backward pass scales them."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float, rows: int, trains: bool):
        products = products_for(hidden)
        total = torch.zeros((), device=hidden.device)
        needs_weight = ctx.needs_input_grad[1]
        to_hidden = torch.empty_like(hidden) if trains else None
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if trains and needs_weight else None
        for start in range(0, len(hidden), rows):
            part, of_part = hidden[start : start + rows], labels[start : start + rows]
            loss, difference = _loss_and_difference(part, weight, of_part, smoothing, products)
            total += loss
            if to_hidden is not None:
                gradients = _gradients(difference, part, weight, len(of_part), smoothing, products, needs_weight)
                to_hidden[start : start + rows] = gradients[0]
                if to_weight is not None and gradients[1] is not None:
                    to_weight += gradients[1]
        if to_weight is not None:
            to_weight = to_weight.to(weight.dtype)
        ctx.save_for_backward(to_hidden, to_weight)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        to_hidden, to_weight = ctx.saved_tensors
        return to_hidden * grad, None if to_weight is None else to_weight * grad, None, None, None, None


def _loss_and_difference(
    hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float, products: Products
) -> tuple[Tensor, Tensor]:
    """The loss and, in place of the logits (N, V), softmax(z) - q without the term that all tokens share."""
    logits = multiply_transposed(hidden, weight, None, products.output)
    is_cpu = hidden.device.type == "cpu"
    rows = softmax_rows(len(weight), is_cpu)
    counted, column = logits[: len(labels)], labels[:, None]
    logits[len(labels) :] = 0
    of_label = counted.gather(1, column).float()  # z of the label
    log_normaliser = torch.empty_like(of_label)
    parts = (x.split(rows) for x in (counted, column, of_label, log_normaliser))
    for some_logits, some_labels, some_of_label, some_normalisers in zip(*parts, strict=True):
        z = some_logits.float()
        if not is_cpu:
            some_normalisers.copy_(z.logsumexp(-1, keepdim=True))
        p = torch.softmax(z, -1, out=z)
        if is_cpu:  # from the label's probability: logsumexp would take as long as softmax
            torch.sub(some_of_label, p.gather(1, some_labels).log_(), out=some_normalisers)
        p.scatter_add_(1, some_labels, p.new_full((1, 1), smoothing - 1).expand_as(some_labels))
        if p.data_ptr() != some_logits.data_ptr():
            some_logits.copy_(p)
    if is_cpu:
        _mend_underflow(log_normaliser, of_label, hidden, weight)
    # -sum_v q(v) log p(v), with log p(v) = z(v) - log_normaliser and q summing to 1
    sum_of_logits = hidden[: len(labels)].sum(0, dtype=torch.float32) @ weight.sum(0, dtype=torch.float32)
    uniform = smoothing / weight.shape[0]
    return log_normaliser.sum() - (1 - smoothing) * of_label.sum() - uniform * sum_of_logits, logits


def _gradients(
    difference: Tensor,
    hidden: Tensor,
    weight: Tensor,
    num_tokens: int,
    smoothing: float,
    products: Products,
    needs_weight: bool,
) -> tuple[Tensor, Tensor | None]:
    """Of the loss, for hidden (N, d_model) and, unless the embedding is frozen, for weight (V, d_model)."""
    counted, uniform = slice(num_tokens), smoothing / weight.shape[0]
    to_hidden = multiply(difference, weight, products.input_gradient)
    to_hidden[counted] -= (uniform * weight.sum(0, dtype=torch.float32)).to(weight.dtype)
    if not needs_weight:
        return to_hidden, None
    to_weight = multiply(difference.t(), hidden, products.weight_gradient)
    to_weight -= (uniform * hidden[counted].sum(0, dtype=torch.float32)).to(hidden.dtype)
    return to_hidden, to_weight


def _mend_underflow(log_normaliser: Tensor, of_label: Tensor, hidden: Tensor, weight: Tensor) -> None:
    """Recomputes, in place, rows whose label's probability is too small for a logarithm: a wrong and very sure model.

    Args:
        log_normaliser, of_label: (M, 1) of the first M rows of hidden (N, d_model). weight: (V, d_model).
    """
    is_small = (of_label - log_normaliser < math.log(LEAST_PROBABILITY)).flatten()
    if is_small.any():
        rows = hidden[: len(is_small)][is_small]
        log_normaliser[is_small] = functional.linear(rows, weight).float().logsumexp(-1, keepdim=True)


def label_smoothed_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> LossSum:
    """Cross-entropy of softmax(hidden weight^T) to the smoothed labels (section 5.4), summed over tokens.

    The loss of a token is -sum_v q(v) log p(v). With smoothing e over a vocabulary of V, q is 1 - e + e / V for the
    label and e / V for every other token (Szegedy et al. 2016).

    Args:
        hidden: (N, d_model). weight: (V, d_model).
        labels: (M,) ids of the first M rows; the other rows are filler, without loss or gradient.
    """
    rows = rows_at_a_time(len(hidden), len(weight), hidden.element_size())
    if rows < len(hidden):
        trains = torch.is_grad_enabled()
        total = _InParts.apply(hidden, weight, labels, smoothing, rows, trains)
    else:
        total = _SmoothedCrossEntropy.apply(hidden, weight, labels, smoothing)
    return LossSum(total, labels.numel())


def rows_at_a_time(num_tokens: int, vocab_size: int, bytes_per_number: int) -> int:
    """Tokens whose logits are in memory at the same time."""
    return min(num_tokens, max(1, PART_BYTES // (vocab_size * bytes_per_number)))


def softmax_rows(vocab_size: int, is_cpu: bool) -> int:
    """Tokens whose softmax is computed at a time."""
    return max(CPU_ROWS, CPU_LOGITS // vocab_size) if is_cpu else GPU_ROWS


class _SymmetricDivergence(torch.autograd.Function):
    """KL(P || Q) + KL(Q || P), summed over rows. The gradients are computed with the sum, some rows at a time, so that
    no tensor has [tokens × vocabulary] elements."""

    @staticmethod
    def forward(ctx, first: Tensor, second: Tensor, weight: Tensor, count: int) -> Tensor:
        needs_gradient = any(ctx.needs_input_grad)
        total = torch.zeros((), dtype=torch.float32, device=first.device)
        to_first, to_second = torch.zeros_like(first), torch.zeros_like(second)
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        for start in range(0, count, DIVERGENCE_ROWS):
            rows = slice(start, min(start + DIVERGENCE_ROWS, count))
            log_p, log_q = (functional.linear(x[rows], weight).float().log_softmax(-1) for x in (first, second))
            p, q, ratio = log_p.exp(), log_q.exp(), log_p - log_q
            from_p, from_q = (p * ratio).sum(-1, keepdim=True), -(q * ratio).sum(-1, keepdim=True)  # KL of each row
            total += from_p.sum() + from_q.sum()
            if needs_gradient:
                # d/dz of sum_v p_v (log p_v - log q_v) is p (ratio - KL); of the other sum it is p - q.
                of_first = (p * (ratio - from_p) + p - q).to(first.dtype)
                of_second = (q * (-ratio - from_q) + q - p).to(first.dtype)
                to_first[rows], to_second[rows] = of_first @ weight, of_second @ weight
                if to_weight is not None:
                    to_weight += of_first.t() @ first[rows] + of_second.t() @ second[rows]
        ctx.save_for_backward(to_first, to_second, *([] if to_weight is None else [to_weight.to(weight.dtype)]))
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        to_first, to_second, *to_weight = ctx.saved_tensors
        return to_first * grad, to_second * grad, to_weight[0] * grad if to_weight else None, None


def symmetric_divergence(first: Tensor, second: Tensor, weight: Tensor, count: int) -> Tensor:
    """KL(P || Q) + KL(Q || P) of P = softmax(first weight^T) and Q = softmax(second weight^T), summed over tokens, in
    nats: a scalar in fp32. With it R-drop compares two passes of one model (Liang et al. 2021, equation 2).

    Args:
        first, second: (N, d_model). weight: (V, d_model).
        count: rows that count, from the first on; the other rows are filler, without loss or gradient.
    """
    return _SymmetricDivergence.apply(first, second, weight, count)  # type: ignore[return-value]
