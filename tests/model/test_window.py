"""A window over chunks is the same as full attention with the window's mask."""

import pytest
import torch
from torch import Tensor, nn

import transloom.model.window
from transloom.model.attention import SelfAttention
from transloom.model.grid import Grid
from transloom.model.packing import Layout
from transloom.model.positions import alibi_slopes
from transloom.model.window import RingCache, Window

WIDTH, HEADS = 16, 4


def reference(
    attention: SelfAttention, x: Tensor, lengths: list[int], causal: bool, window: Window, slopes: Tensor | None
) -> Tensor:
    """Text by text and token by token, with a dense mask."""
    contexts = []
    for text in attention.query_key_value(x).split(lengths):
        query, key, value = (
            part.unflatten(1, (-1, WIDTH // HEADS)).transpose(0, 1) for part in text.split(attention.widths, dim=1)
        )
        hidden = torch.zeros(HEADS, len(text), len(text), dtype=x.dtype)
        for i in range(len(text)):
            for j in range(len(text)):
                is_near = abs(i - j) < window.size or min(i, j) < window.global_tokens
                if not is_near or (causal and j > i):
                    hidden[:, i, j] = -torch.inf
                elif slopes is not None:
                    hidden[:, i, j] = -slopes * abs(i - j)
        key, value = (part.repeat_interleave(HEADS // len(part), dim=0) for part in (key, value))
        weights = (query @ key.mT / (WIDTH // HEADS) ** 0.5 + hidden).softmax(-1)
        contexts.append((weights @ value).transpose(0, 1).flatten(1))
    return attention.output(torch.cat(contexts))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both sides"])
@pytest.mark.parametrize("num_global", [0, 3, 11])
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("with_slopes", [False, True], ids=["plain", "alibi"])
@pytest.mark.parametrize("least_chunk", [1, 64])
def test_a_window_is_full_attention_with_its_mask(
    causal: bool, num_global: int, size: int, with_slopes: bool, least_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of several chunks, of whole chunks, of one, and shorter than the window; forward and backward, in fp32."""
    monkeypatch.setattr(transloom.model.window, "LEAST_CHUNK", least_chunk)
    torch.manual_seed(0)
    lengths, window = [29, 16, 5, 1], Window(size, num_global)
    slopes = alibi_slopes(HEADS) if with_slopes else None
    attention = SelfAttention(WIDTH, HEADS, 4, 4, 2 if num_global else 4, window=window, slopes=slopes)
    x = torch.randn(sum(lengths), WIDTH, requires_grad=True)
    grid = Grid(Layout.of(torch.tensor(lengths)), HEADS, x.dtype, slopes=slopes)
    inputs = [x, *attention.parameters()]
    out = attention(x, grid, causal)
    expected = reference(attention, x, lengths, causal, window, slopes)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    scale = torch.randn_like(out)
    gradients = torch.autograd.grad((out * scale).sum(), inputs), torch.autograd.grad((expected * scale).sum(), inputs)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_weights_are_those_of_the_window(causal: bool) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(WIDTH, HEADS, 4, 4, 2, window=Window(3, 1))
    x, grid = torch.randn(17, WIDTH), Grid(Layout.of(torch.tensor([12, 5])), HEADS, torch.float32)
    weights = attention.weights(x, grid, causal)[0]
    seen = weights[0, 7].nonzero().squeeze(1).tolist()
    assert seen == ([0, 5, 6, 7] if causal else [0, 5, 6, 7, 8, 9])
    values = attention.query_key_value(x)[:12].split(attention.widths, dim=1)[2].unflatten(1, (2, 4)).transpose(0, 1)
    context = weights @ values.repeat_interleave(2, dim=0)
    out = attention.output(context.transpose(0, 1).flatten(1))
    torch.testing.assert_close(out, attention(x, grid, causal)[:12], rtol=0, atol=1e-6)


def test_dropout_drops_weights_within_the_window() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(WIDTH, HEADS, 4, 4, dropout=0.5, window=Window(3, 1))
    nn.init.zeros_(attention.query_key_value.weight)
    attention.query_key_value.bias.data[2 * WIDTH :] = 1.0
    nn.init.eye_(attention.output.weight)
    nn.init.zeros_(attention.output.bias)
    x, grid = torch.randn(4000, WIDTH), Grid(Layout.of(torch.tensor([4000])), HEADS, torch.float32)
    context = attention(x, grid, causal=True)[10:]  # four weights of 1/4, each 0 or twice as much
    assert sorted(set(context.mul(4).round().flatten().tolist())) == [0, 2, 4, 6, 8]
    assert context.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(attention.eval()(x, grid, causal=True)[10:], torch.ones_like(context))


def test_a_ring_keeps_the_window_and_the_global_tokens() -> None:
    """Row 0 has read 2 tokens, row 1 has read 9; both read on to 6 and 13."""
    ring = RingCache(Window(3, 2))
    keys = torch.arange(9.0).expand(2, 9)[:, None, :, None]
    ring.fill(keys, -keys, torch.tensor([2, 9]))
    for step in range(3):
        positions = torch.tensor([2, 9]) + step
        ring.append(positions[:, None, None].float(), -positions[:, None, None].float(), positions)
    positions = torch.tensor([5, 12])
    held, values = ring.append(positions[:, None, None].float(), -positions[:, None, None].float(), positions)
    assert torch.equal(values, -held)
    assert ring.mask(positions, torch.float32).shape == (2, 1, 1, 5)
    for row, expected in enumerate(([0, 1, 3, 4, 5], [0, 1, 10, 11, 12])):
        assert sorted(held[row, 0, :, 0].tolist()) == expected
        assert ring.positions(positions)[row].tolist() == held[row, 0, :, 0].tolist()
    ring.reorder(torch.tensor([0]), 6)
    held, _ = ring.append(torch.full((1, 1, 1), 6.0), torch.full((1, 1, 1), -6.0))
    assert sorted(held.flatten().tolist()) == [0, 1, 4, 5, 6]


def test_the_ring_of_a_long_text_is_small() -> None:
    ring = RingCache(Window(4, 1))
    for position in range(300):
        keys, _ = ring.append(torch.full((1, 2, 3), float(position)), torch.zeros(1, 2, 3))
        assert keys.shape[2] == min(position + 1, 5)
        assert keys.shape[2] == len(set(keys[0, 0, :, 0].tolist()))
    assert sum(part.untyped_storage().nbytes() for part in ring._parts) == 2 * 2 * 3 * 5 * 4


@pytest.mark.parametrize("heads", [8, 6, 1])
def test_slopes_are_the_papers(heads: int) -> None:
    """8 heads: 1/2, 1/4, …, 1/256; 6: those of 4, then the first and third of 8."""
    expected = {8: [2.0**-i for i in range(1, 9)], 6: [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8], 1: [2.0**-8]}
    assert alibi_slopes(heads).tolist() == expected[heads]
