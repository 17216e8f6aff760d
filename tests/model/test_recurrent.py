"""The attentional LSTM against torch's; its parameters and precision. Laws: test_laws.py."""

import pytest
import torch
from packed import VOCAB, make_recurrent, pack, run, sentences
from torch import nn

from transloom.model.build import architecture_of, build_model
from transloom.model.config import RecurrentConfig, TransformerConfig
from transloom.model.flops import multiply_adds
from transloom.model.losses import label_smoothed_cross_entropy
from transloom.model.packing import Layout
from transloom.model.recurrent import Recurrent, TimeGrid
from transloom.model.transformer import Transformer

LAYERS = [(1, 1), (2, 3)]


def test_an_encoder_layer_equals_torchs_bidirectional_lstm_on_packed_sequences() -> None:
    layer = make_recurrent().encoder[0]
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
    model = make_recurrent().float().train()
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
    model = make_recurrent(encoder, decoder)
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
