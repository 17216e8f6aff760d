"""Laws of the attention's weights: what they are, and that `forward` uses just these."""

import pytest
import torch
from reference_varlen import reference_varlen
from torch import Tensor, nn

import transloom.model.attention
from transloom.model.attention import CrossAttention, SelfAttention
from transloom.model.config import TransformerConfig
from transloom.model.grid import Grid, causal_mask, grid_of, padding_mask
from transloom.model.kernels.attention import attend
from transloom.model.packing import Layout
from transloom.model.transformer import Transformer

LENGTHS, OTHER_LENGTHS = (5, 2, 7), (3, 6, 1)  # of unequal sentences, so that there is padding
WIDTH, HEADS = 12, 3


def grid(lengths: tuple[int, ...]) -> Grid:
    config = TransformerConfig(d_model=WIDTH, d_ff=1, num_heads=HEADS, encoder_layers=1, decoder_layers=1)
    return grid_of(Transformer(config, vocab_size=1).double(), Layout.of(torch.tensor(lengths)))


def tokens(lengths: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(sum(lengths), WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make(kind: type[nn.Module], value_width: int = WIDTH // HEADS + 1) -> nn.Module:
    torch.manual_seed(0)
    attention = kind(WIDTH, HEADS, WIDTH // HEADS + 1, value_width).double()  # heads need not share the width out
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return attention


def check_rows(weights: Tensor, query_lengths: tuple[int, ...], key_lengths: tuple[int, ...]) -> None:
    for of_one, queries, keys in zip(weights, query_lengths, key_lengths, strict=True):
        rows = of_one[:, :queries]
        torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]))
        assert (rows >= 0).all()
        assert (rows[..., keys:] == 0).all(), "padding gets something"


def check_context(
    weights: Tensor,
    values: Tensor,
    output: nn.Linear,
    expected: Tensor,
    query_lengths: tuple[int, ...],
    key_lengths: tuple[int, ...],
) -> None:
    """The weights' mean of the values, sentence by sentence, through the output projection, is what forward gives."""
    found = []
    for of_one, value, queries in zip(weights, values.split(list(key_lengths)), query_lengths, strict=True):
        heads = value.view(len(value), HEADS, -1).transpose(0, 1)  # (H, keys, K)
        context = of_one[:, :queries, : len(value)] @ heads
        found.append(output(context.transpose(0, 1).flatten(1)))
    torch.testing.assert_close(torch.cat(found), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value_width", [5, 2])  # as wide as the keys, and narrower
@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_is_the_mean_of_values_by_its_weights(causal: bool, value_width: int) -> None:
    attention, x, layout = make(SelfAttention, value_width), tokens(LENGTHS, 1), grid(LENGTHS)
    weights = attention.weights(x, layout, causal=causal)
    assert weights.shape == (len(LENGTHS), HEADS, layout.shape[1], layout.shape[1])
    check_rows(weights, LENGTHS, LENGTHS)
    assert bool((weights.triu(1) == 0).all()) == causal
    assert not torch.allclose(weights[:, 0], weights[:, 1])
    values = attention.query_key_value(x).split([HEADS * 5, HEADS * 5, HEADS * value_width], dim=1)[2]
    check_context(weights, values, attention.output, attention(x, layout, causal=causal), LENGTHS, LENGTHS)


@pytest.mark.parametrize("value_width", [5, 2])
def test_cross_attention_is_the_mean_of_values_by_its_weights(value_width: int) -> None:
    attention, x, memory = make(CrossAttention, value_width), tokens(LENGTHS, 1), tokens(OTHER_LENGTHS, 2)
    target, source = grid(LENGTHS), grid(OTHER_LENGTHS)
    weights = attention.weights(x, memory, target, source)
    assert weights.shape == (len(LENGTHS), HEADS, target.shape[1], source.shape[1])
    check_rows(weights, LENGTHS, OTHER_LENGTHS)
    values = attention.key_value(memory).split([HEADS * 5, HEADS * value_width], dim=1)[1]
    expected = attention(x, memory, target, source)
    check_context(weights, values, attention.output, expected, LENGTHS, OTHER_LENGTHS)


@pytest.mark.parametrize("mask", ["none", "causal", "padding"])
def test_attend_has_the_gradient_of_its_formula(mask: str) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    hidden = {
        "none": None,
        "causal": causal_mask(4, torch.float64, query.device),
        "padding": padding_mask(torch.tensor([[False] * 4, [False, False, True, True]]), torch.float64),
    }[mask]
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, hidden), (query, key, value))
    scores = query @ key.transpose(-1, -2) / 5**0.5 + (0.0 if hidden is None else hidden)
    torch.testing.assert_close(attend(query, key, value, hidden), scores.softmax(-1) @ value)


@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
@pytest.mark.parametrize("causal", [False, True])
def test_the_way_without_a_grid_gives_the_same(
    kind: type[nn.Module], causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself runs on GPUs alone; what goes into it and comes out of it is tested with a stand-in."""
    attention, x, memory = make(kind), tokens(LENGTHS, 1), tokens(OTHER_LENGTHS, 2)
    target, source = grid(LENGTHS), grid(OTHER_LENGTHS)

    def run() -> Tensor:
        if kind is SelfAttention:
            return attention(x, target, causal=causal)
        return attention(x, memory, target, source)

    expected = run()
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(varlen, "varlen_attn", reference_varlen)
    monkeypatch.setattr(transloom.model.attention.Grid, "has_packed_kernel", True)
    torch.testing.assert_close(run(), expected)
