"""The Transformer against an independent implementation and the paper's formulas; its parts. Laws: test_laws.py."""

import math
from dataclasses import replace

import pytest
import torch
from packed import SIZES, VOCAB, make_transformer, run, sentences
from torch import Tensor, nn

from transloom.model.config import Norm, Positions, TransformerConfig
from transloom.model.dropout import Dropout
from transloom.model.grid import causal_mask
from transloom.model.kernels.attention import attend
from transloom.model.packing import Layout, from_grid, to_grid
from transloom.model.positions import sinusoids
from transloom.model.transformer import Transformer


@pytest.mark.parametrize("norm", Norm)
def test_equals_torch_with_the_same_weights(norm: Norm) -> None:
    model = make_transformer(norm)
    reference = nn.Transformer(
        d_model=16,
        nhead=4,
        num_encoder_layers=2,
        num_decoder_layers=2,
        dim_feedforward=32,
        dropout=0.0,
        batch_first=True,
        norm_first=norm is Norm.pre,
        dtype=torch.float64,
    ).eval()
    if norm is Norm.post:  # torch adds a last normalisation that the paper's figure 1 does not have
        reference.encoder.norm = reference.decoder.norm = None
    with torch.no_grad():
        for parameter in model.parameters():  # biases and normalisations of other than zeros and ones
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for ours, theirs in zip(model.encoder, reference.encoder.layers, strict=True):
            copy_self_attention(ours.self_attention, theirs.self_attn)
            copy_feed_forward(ours.feed_forward, theirs)
            theirs.norm1.load_state_dict(ours.around_attention.norm.state_dict())
            theirs.norm2.load_state_dict(ours.around_feed_forward.norm.state_dict())
        for ours, theirs in zip(model.decoder, reference.decoder.layers, strict=True):
            copy_self_attention(ours.self_attention, theirs.self_attn)
            copy_feed_forward(ours.feed_forward, theirs)
            cross = ours.cross_attention
            theirs.multihead_attn.in_proj_weight.copy_(torch.cat((cross.query.weight, cross.key_value.weight)))
            theirs.multihead_attn.in_proj_bias.copy_(torch.cat((cross.query.bias, cross.key_value.bias)))
            theirs.multihead_attn.out_proj.load_state_dict(cross.output.state_dict())
            theirs.norm1.load_state_dict(ours.around_self_attention.norm.state_dict())
            theirs.norm2.load_state_dict(ours.around_cross_attention.norm.state_dict())
            theirs.norm3.load_state_dict(ours.around_feed_forward.norm.state_dict())
        if norm is Norm.pre:
            reference.encoder.norm.load_state_dict(model.encoder_norm.state_dict())
            reference.decoder.norm.load_state_dict(model.decoder_norm.state_dict())
        sources, targets = sentences(5, 9, 2), sentences(8, 3, 6, seed=1)

        def embed(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
            tokens = nn.utils.rnn.pad_sequence(parts, batch_first=True)
            padding = torch.arange(tokens.shape[1]) >= torch.tensor([len(part) for part in parts])[:, None]
            return model.embedding(tokens) * 4.0 + sinusoids(tokens.shape[1], 16).double(), padding

        (source, source_padding), (target, _) = embed(sources), embed(targets)
        expected = reference(
            source,
            target,
            tgt_mask=nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=torch.float64),
            src_key_padding_mask=source_padding,
            memory_key_padding_mask=source_padding,
        )
        for i, ours in enumerate(run(model, sources, targets)):
            torch.testing.assert_close(ours, expected[i, : len(ours)], rtol=0, atol=1e-12)


def copy_self_attention(ours: nn.Module, theirs: nn.MultiheadAttention) -> None:
    theirs.in_proj_weight.copy_(ours.query_key_value.weight)
    theirs.in_proj_bias.copy_(ours.query_key_value.bias)
    theirs.out_proj.load_state_dict(ours.output.state_dict())


def copy_feed_forward(ours: nn.Module, theirs: nn.Module) -> None:
    theirs.linear1.load_state_dict(ours.inner.state_dict())
    theirs.linear2.load_state_dict(ours.outer.state_dict())


def test_attend_against_equation_one() -> None:
    query, key, value = (torch.randn(4, 8, dtype=torch.float64) for _ in range(3))
    scores = query @ key.T / math.sqrt(8) + causal_mask(4, torch.float64, query.device)
    weights = scores.exp() / scores.exp().sum(1, keepdim=True)
    expected = weights @ value
    torch.testing.assert_close(attend(query, key, value, causal_mask(4, torch.float64, query.device)), expected)
    torch.testing.assert_close(expected[0], value[0])  # the first token sees itself alone


def test_sinusoids_against_the_formula() -> None:
    table = sinusoids(50, 16)
    for position in (0, 1, 7, 49):
        for i in range(8):
            angle = position / 10000 ** (2 * i / 16)
            assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_the_way_to_the_grid_and_back_has_the_gradient_of_a_gather() -> None:
    layout = Layout.of(torch.tensor([3, 1, 2]))
    rows, places = layout.head_rows(2, 3)
    x = torch.randn(6 * 3 * 2, 5, dtype=torch.float64, requires_grad=True)
    grid = to_grid(x, rows, places)
    assert torch.equal(from_grid(grid, rows, places), x)
    weight = torch.randn_like(grid)
    is_token = torch.zeros(len(rows)).scatter_(0, places, 1.0)[:, None]  # padding takes no part, as in attention
    (ours,) = torch.autograd.grad((grid * weight * is_token).sum(), x)
    (reference,) = torch.autograd.grad((x.index_select(0, rows) * weight * is_token).sum(), x)
    torch.testing.assert_close(ours, reference)
    filled = torch.randn(len(rows), 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: from_grid(y, rows, places), filled)


def test_dropout_keeps_the_mean_and_its_share() -> None:
    torch.manual_seed(0)
    x = torch.ones(200_000, requires_grad=True)
    y = Dropout(0.3)(x)
    dropped = (y == 0).double().mean().item()
    assert dropped == pytest.approx(77 / 256, abs=0.005)  # 0.3 rounded to a multiple of 1/256
    assert y.mean().item() == pytest.approx(1.0, abs=0.01)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(Dropout(0.3).eval()(x), x)


def test_dropout_is_added_with_its_gradient() -> None:
    x, change = torch.randn(1000, requires_grad=True), torch.randn(1000, requires_grad=True)
    weight = torch.randn(1000)
    torch.manual_seed(2)
    added = Dropout(0.3)(change, x)
    torch.manual_seed(2)
    dropped = Dropout(0.3)(change)
    torch.testing.assert_close(added, x + dropped)
    assert 0 < (dropped == 0).sum() < 1000
    for one, other in zip(
        torch.autograd.grad((added * weight).sum(), (x, change)),
        torch.autograd.grad(((x + dropped) * weight).sum(), (x, change)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_dropout_positions_are_independent() -> None:
    torch.manual_seed(1)
    keep = (Dropout(0.5)(torch.ones(1 << 18)) > 0).double() - 0.5
    for lag in (1, 2, 7, 8):  # eight come from one random word
        assert abs((keep[:-lag] * keep[lag:]).mean().item()) < 0.002


def test_too_long_a_sentence_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="max_positions is 64"):
        run(make_transformer(), sentences(65), sentences(3))


@pytest.mark.parametrize("positions", Positions)
def test_a_sentence_may_be_as_long_as_an_odd_limit(positions: Positions) -> None:
    """Grids have an even length: one more than such a sentence, and than there are positions."""
    model = Transformer(TransformerConfig(**SIZES, positions=positions, max_positions=63), VOCAB).eval()
    for hidden in run(model, sentences(63, 4), sentences(63, 5)):
        assert hidden.isfinite().all()
    with pytest.raises(ValueError, match=r"64 tokens.*max_positions is 63"):
        run(model, sentences(64), sentences(3))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"d_model": 0}, "d_model"),
        ({"num_heads": 3}, "d_model"),
        ({"dropout": 1.0}, "dropout"),
        ({"encoder_layers": 0}, "encoder_layers"),
    ],
)
def test_impossible_shapes_are_refused_by_field(change: dict[str, int], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        TransformerConfig(**{**SIZES, **change})


@torch.no_grad()
def test_an_embedding_of_the_sources_own() -> None:
    """With the target's vectors it is the shared one; with others only the source is read in another way."""
    config = TransformerConfig(d_model=16, d_ff=32, num_heads=4, encoder_layers=1, decoder_layers=1, dropout=0.0)
    torch.manual_seed(0)
    shared = Transformer(config, VOCAB).eval()
    separate = Transformer(replace(config, shared_embeddings=False), VOCAB).eval()
    assert separate.source_embedding is not None
    own = separate.source_embedding.weight.clone()
    missing, unexpected = separate.load_state_dict(shared.state_dict(), strict=False)
    assert (missing, unexpected) == (["source_embedding.weight"], [])
    pairs = [sentences(5, 9, 2), sentences(8, 3, 6, seed=1)]
    packed = [(torch.cat(parts), Layout.of(torch.tensor([len(part) for part in parts]))) for parts in pairs]
    expected = shared(*packed[0], *packed[1])
    assert not torch.allclose(separate(*packed[0], *packed[1]), expected)
    separate.source_embedding.weight.copy_(separate.embedding.weight)
    torch.testing.assert_close(separate(*packed[0], *packed[1]), expected)
    separate.source_embedding.weight.copy_(own)
    decoding = separate.start_decoding(*packed[0])
    steps = [decoding.step(torch.stack([target[i] for target in pairs[1]])) for i in range(3)]
    whole = separate.logits(separate(*packed[0], *packed[1])).split([len(target) for target in pairs[1]])
    for i, logits in enumerate(steps):
        torch.testing.assert_close(logits, torch.stack([of_target[i] for of_target in whole]), rtol=1e-4, atol=1e-5)
