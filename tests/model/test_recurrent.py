"""Laws of the attentional LSTM: what must hold whatever its weights."""

import pytest
import torch
from torch import Tensor, nn

from model.build import architecture_of, build_model
from model.config import RecurrentConfig, TransformerConfig
from model.flops import multiply_adds
from model.losses import label_smoothed_cross_entropy
from model.packing import Layout
from model.recurrent import Recurrent, TimeGrid
from model.transformer import Transformer

VOCAB = 29
LAYERS = [(1, 1), (2, 3)]


def make_model(encoder_layers: int = 2, decoder_layers: int = 3) -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(RecurrentConfig(16, encoder_layers, decoder_layers), VOCAB).double().eval()


def sentences(*lengths: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, VOCAB, (length,), generator=generator) for length in lengths]


def pack(parts: list[Tensor]) -> tuple[Tensor, Layout]:
    return torch.cat(parts), Layout.of(torch.tensor([len(part) for part in parts]))


def run(model: Recurrent, sources: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
    """The decoder's output by sentence."""
    hidden = model(*pack(sources), *pack(targets))
    return list(hidden.split([len(target) for target in targets]))


@pytest.mark.parametrize("layers", LAYERS)
def test_packing_and_padding_change_nothing(layers: tuple[int, int]) -> None:
    model = make_model(*layers)
    sources, targets = sentences(5, 9, 1, 7), sentences(8, 2, 6, 1, seed=1)
    together = run(model, sources, targets)
    for source, target, among_others in zip(sources, targets, together, strict=True):
        torch.testing.assert_close(among_others, run(model, [source], [target])[0], rtol=0, atol=1e-12)


def test_gradients_do_not_depend_on_the_packing() -> None:
    model = make_model()
    sources, targets = sentences(5, 9, 3), sentences(8, 2, 6, seed=1)
    together = torch.autograd.grad(sum(p.pow(2).sum() for p in run(model, sources, targets)), list(model.parameters()))
    alone_sum = sum(run(model, [s], [t])[0].pow(2).sum() for s, t in zip(sources, targets, strict=True))
    for one, other in zip(together, torch.autograd.grad(alone_sum, list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_future_token_never_changes_the_past() -> None:
    model = make_model()
    sources, (target,) = sentences(5), sentences(8, seed=1)
    before = run(model, sources, [target])[0]
    for position in range(1, 8):
        changed = target.clone()
        changed[position] = 4 + (target[position] - 3) % (VOCAB - 4)
        after = run(model, sources, [changed])[0]
        assert torch.equal(before[:position], after[:position])
        assert not torch.allclose(before[position:], after[position:])


def test_every_source_token_matters_to_every_position() -> None:
    model = make_model()
    (source,), targets = sentences(6), sentences(4, seed=1)
    before = run(model, [source], targets)[0]
    for position in range(6):
        changed = source.clone()
        changed[position] = 4 + (source[position] - 3) % (VOCAB - 4)
        difference = (before - run(model, [changed], targets)[0]).abs().amax(1)
        assert (difference > 1e-9).all()


@pytest.mark.parametrize("layers", LAYERS)
def test_stepwise_decoding_equals_teacher_forcing(layers: tuple[int, int]) -> None:
    model = make_model(*layers)
    sources = sentences(5, 9, 2)
    targets = torch.stack(sentences(20, 20, 20, seed=1))
    decoding = model.start_decoding(*pack(sources))
    stepped = torch.stack([decoding.step(targets[:, t]) for t in range(20)], dim=1)
    whole = torch.stack(run(model, sources, list(targets))) @ model.embedding.weight.T
    torch.testing.assert_close(stepped, whole, rtol=0, atol=1e-12)


def test_reordered_hypotheses_go_on_from_their_parents() -> None:
    model = make_model()
    sources = sentences(5, 9)
    prefixes = torch.stack(sentences(3, 3, 3, 3, seed=1))  # two hypotheses for each of the two sentences
    nexts = torch.tensor([7, 8])
    decoding = model.start_decoding(*pack(sources))
    decoding.reorder(torch.tensor([0, 0, 1, 1]), None)  # nothing fed yet: nothing to reorder
    for t in range(3):
        decoding.step(prefixes[:, t])
    rows = torch.tensor([3, 2])  # the first sentence is done; the second's two change places
    decoding.reorder(rows, torch.tensor([1]))
    stepped = decoding.step(nexts)
    targets = [torch.cat((prefixes[row], nexts[i : i + 1])) for i, row in enumerate(rows)]
    whole = torch.stack([out[-1] for out in run(model, [sources[1], sources[1]], targets)])
    torch.testing.assert_close(stepped, whole @ model.embedding.weight.T, rtol=0, atol=1e-12)


def test_an_encoder_layer_equals_torchs_bidirectional_lstm_on_packed_sequences() -> None:
    layer = make_model().encoder[0]
    reference = nn.LSTM(16, 8, bidirectional=True).double()
    forwards, backwards = layer.forwards.state_dict(), layer.backwards.state_dict()
    reference.load_state_dict({**forwards, **{f"{name}_reverse": tensor for name, tensor in backwards.items()}})
    parts = [torch.randn(length, 16, dtype=torch.float64) for length in (5, 9, 1, 7)]
    expected, _ = reference(nn.utils.rnn.pack_sequence(parts, enforce_sorted=False))
    padded, lengths = nn.utils.rnn.pad_packed_sequence(expected)
    grid = TimeGrid.of(Layout.of(lengths))
    found = grid.pack(layer(grid.spread(torch.cat(parts)), grid)).split(lengths.tolist())
    for i, ours in enumerate(found):
        torch.testing.assert_close(ours, padded[: lengths[i], i], rtol=0, atol=1e-12)


def test_the_loss_reaches_every_parameter() -> None:
    model = make_model().float().train()
    targets = sentences(8, 2, seed=1)
    hidden = model(*pack(sentences(5, 9)), *pack(targets))
    label_smoothed_cross_entropy(hidden, model.embedding.weight, torch.cat(targets), 0.1).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_bf16_on_this_processor_is_close_to_fp32() -> None:
    """oneDNN's kernel, which trains; torch's own would be right too, but hundreds of times as slow."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor does not compute in bf16")
    torch.manual_seed(1)
    exact = Recurrent(RecurrentConfig(32, 2, 2, dropout=0.0), VOCAB)
    rounded = Recurrent(RecurrentConfig(32, 2, 2, dropout=0.0), VOCAB).bfloat16()
    rounded.load_state_dict(exact.state_dict())
    gradients = []
    for model in (exact, rounded):
        sum(part.float().pow(2).sum() for part in run(model, sentences(5, 9), sentences(8, 2, seed=1))).backward()
        gradients.append([parameter.grad.float() for parameter in model.parameters()])
    for (name, _), one, other in zip(exact.named_parameters(), *gradients, strict=True):
        assert (one - other).norm() < 0.05 * one.norm(), name


@pytest.mark.parametrize("layers", LAYERS)
def test_the_number_of_parameters_and_of_multiply_adds(layers: tuple[int, int]) -> None:
    encoder, decoder = layers
    model = make_model(encoder, decoder)
    d, h = 16, 8
    parameters = VOCAB * d
    parameters += encoder * 2 * 4 * h * (d + h + 2)  # four gates of two products and torch's two biases
    parameters += 4 * d * (2 * d + 2) + (decoder - 1) * 4 * d * (3 * d + 2)
    parameters += d * d + (2 * d + 1) * d
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    # A weight matrix of m × n multiplies once a token; the embedding as the output projection, for a target token.
    matrices = {name: p.numel() for name, p in model.named_parameters() if p.dim() == 2}
    of_source = sum(size for name, size in matrices.items() if name.startswith(("encoder", "key")))
    assert multiply_adds(model.config, VOCAB) == (of_source, sum(matrices.values()) - of_source)


def test_a_configuration_builds_its_model() -> None:
    lstm = RecurrentConfig(16, 1, 1)
    transformer = TransformerConfig(d_model=16, d_ff=32, num_heads=2, encoder_layers=1, decoder_layers=1)
    assert isinstance(build_model(lstm, VOCAB), Recurrent) and architecture_of(lstm) == "lstm"
    assert isinstance(build_model(transformer, VOCAB), Transformer) and architecture_of(transformer) == "transformer"


@pytest.mark.parametrize(
    ("change", "field"),
    [({"d_model": 15}, "d_model"), ({"dropout": 1.0}, "dropout"), ({"decoder_layers": 0}, "decoder_")],
)
def test_impossible_shapes_are_refused_by_field(change: dict[str, int], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}"):
        RecurrentConfig(**change)
