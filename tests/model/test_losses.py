import math

import pytest
import torch

import transloom.model.losses
from transloom.model.kernels.linear import multiply
from transloom.model.losses import label_smoothed_cross_entropy, symmetric_divergence


def test_against_a_matrix_written_by_hand() -> None:
    # One token, three words, logits (1, 0, -1); the label is word 0.
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[1.0], [0.0], [-1.0]])
    normaliser = math.log(math.e + 1 + 1 / math.e)
    log_p = [1 - normaliser, -normaliser, -1 - normaliser]
    q = [0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]
    expected = -sum(a * b for a, b in zip(q, log_p, strict=True))
    loss = label_smoothed_cross_entropy(hidden, weight, torch.tensor([0]), smoothing=0.1)
    assert loss.total.item() == pytest.approx(expected, abs=1e-6)
    assert loss.num_tokens == 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("tokens", [1, 32, 150])  # below, at and above the rows done at a time
def test_value_and_gradient_equal_torch(smoothing: float, tokens: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(tokens, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=True)
    labels = torch.randint(50, (tokens,))
    ours = label_smoothed_cross_entropy(hidden, weight, labels, smoothing)
    theirs = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(ours.total, theirs)
    for one, other in zip(
        torch.autograd.grad(ours.total * 3.0, (hidden, weight)),
        torch.autograd.grad(theirs * 3.0, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1000.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]])
    loss = label_smoothed_cross_entropy(hidden, weight, torch.tensor([1]), smoothing=0.0)
    assert loss.total.item() == pytest.approx(2000.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_label_whose_probability_underflows_counts_in_full(smoothing: float, dtype: torch.dtype) -> None:
    """Rows that are sure of another word, beside rows that are not."""
    torch.manual_seed(0)
    hidden = torch.randn(70, 4)
    hidden[::7] *= 60
    hidden, weight, labels = hidden.to(dtype), torch.randn(9, 4).to(dtype), torch.randint(9, (70,))
    exact = hidden.double() @ weight.double().T
    assert (exact.softmax(-1).float().gather(1, labels[:, None]) < 1e-30).sum() > 2
    expected = torch.nn.functional.cross_entropy(exact, labels, reduction="sum", label_smoothing=smoothing)
    loss = label_smoothed_cross_entropy(hidden, weight, labels, smoothing).total
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5 if dtype is torch.float32 else 5e-3)


def test_bf16_sums_in_fp32() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(4000, 16).bfloat16(), torch.randn(100, 16).bfloat16()
    labels = torch.randint(100, (4000,))
    ours = label_smoothed_cross_entropy(hidden, weight, labels, 0.1).total
    exact = label_smoothed_cross_entropy(hidden.double(), weight.double(), labels, 0.1).total
    assert ours.item() == pytest.approx(exact.item(), rel=2e-3)
    assert ours.dtype is torch.float32


def test_rows_behind_the_labels_have_neither_loss_nor_gradient() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(150, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=True)
    labels = torch.randint(50, (130,))
    filled = label_smoothed_cross_entropy(hidden, weight, labels, 0.1)
    alone = label_smoothed_cross_entropy(hidden[:130], weight, labels, 0.1)
    torch.testing.assert_close(filled.total, alone.total)
    assert filled.num_tokens == 130
    for one, other in zip(
        torch.autograd.grad(filled.total, (hidden, weight)),
        torch.autograd.grad(alone.total, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("num_labels", [150, 101, 7])
def test_in_parts_the_loss_and_its_gradient_are_the_same(
    smoothing: float, num_labels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of 20 rows, some of which are half or wholly filler."""
    torch.manual_seed(0)
    hidden, weight = (torch.randn(rows, 8, requires_grad=True) for rows in (150, 50))
    labels = torch.randint(50, (num_labels,))
    whole = label_smoothed_cross_entropy(hidden, weight, labels, smoothing).total
    expected = torch.autograd.grad(whole * 3.0, (hidden, weight))
    monkeypatch.setattr(transloom.model.losses, "PART_BYTES", 20 * 50 * 4)
    products = []
    monkeypatch.setattr(transloom.model.losses, "multiply", lambda *args: products.append(1) or multiply(*args))
    parts = label_smoothed_cross_entropy(hidden, weight, labels, smoothing)
    assert parts.num_tokens == num_labels
    assert len(products) == 2 * 8
    torch.testing.assert_close(parts.total, whole)
    for one, other in zip(torch.autograd.grad(parts.total * 3.0, (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(label_smoothed_cross_entropy(hidden, weight, labels, smoothing).total, whole)
    assert len(products) == 2 * 8, "a validation needs no gradients"
    frozen = weight.detach()
    (alone,) = torch.autograd.grad(label_smoothed_cross_entropy(hidden, frozen, labels, smoothing).total * 3.0, hidden)
    torch.testing.assert_close(alone, expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 40, 1500])  # below and above the rows done at a time
def test_symmetric_divergence_and_its_gradient_equal_torch(tokens: int) -> None:
    torch.manual_seed(0)
    first, second = (torch.randn(tokens + 3, 8, requires_grad=True) for _ in range(2))  # with three rows of filler
    weight = torch.randn(50, 8, requires_grad=True)
    ours = symmetric_divergence(first, second, weight, tokens)
    log_p, log_q = ((x[:tokens] @ weight.T).log_softmax(-1) for x in (first, second))
    divergence = torch.nn.functional.kl_div
    theirs = divergence(log_p, log_q, reduction="sum", log_target=True)
    theirs = theirs + divergence(log_q, log_p, reduction="sum", log_target=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(ours * 3.0, (first, second, weight)),
        torch.autograd.grad(theirs * 3.0, (first, second, weight)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_symmetric_divergence_of_equal_vectors_is_zero_and_a_frozen_weight_has_no_gradient() -> None:
    first, weight = torch.randn(5, 8, requires_grad=True), torch.randn(20, 8)
    loss = symmetric_divergence(first, first.detach(), weight, 5)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    assert torch.autograd.grad(loss, first)[0].abs().max() < 1e-5
