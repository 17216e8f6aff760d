"""The LSTM language model: torch's LSTM on packed texts, and decoding that equals reading."""

import pytest
import torch
from packed import VOCAB, pack, sentences
from torch import nn

from transloom.model.build import architecture_of, build_model
from transloom.model.config import RecurrentDecoderConfig
from transloom.model.flops import multiply_adds
from transloom.model.losses import label_smoothed_cross_entropy
from transloom.model.recurrent_decoder import RecurrentDecoder

LENGTHS = (5, 9, 1, 8)


def make(layers: int = 2) -> RecurrentDecoder:
    torch.manual_seed(0)
    return RecurrentDecoder(RecurrentDecoderConfig(16, layers), VOCAB).double().eval()


def test_one_layer_is_torchs_lstm_on_each_text() -> None:
    model, texts = make(layers=1), sentences(*LENGTHS)
    hidden = model(*pack(texts)).split(LENGTHS)
    for text, of_text in zip(texts, hidden, strict=True):
        expected, _ = model.layers[0](4.0 * model.embedding(text))
        torch.testing.assert_close(of_text, expected, rtol=0, atol=1e-12)


def test_a_text_sees_neither_its_future_nor_its_neighbours() -> None:
    model, texts = make(), sentences(*LENGTHS)
    whole = model(*pack(texts)).split(LENGTHS)
    for text, of_text in zip(texts, whole, strict=True):
        for end in range(1, len(text) + 1):
            torch.testing.assert_close(model(*pack([text[:end]])), of_text[:end], rtol=0, atol=1e-12)


def test_decoding_behind_prompts_of_any_lengths_gives_what_reading_gives() -> None:
    model, texts = make(3), sentences(7, 12, 6)
    prompts = [text[:length] for text, length in zip(texts, (3, 8, 2), strict=True)]
    decoding = model.start_decoding(*pack(prompts))
    rows = [0, 1, 2]
    for step in range(4):
        for row, place in enumerate(rows):
            read = texts[place][: len(prompts[place]) + step]
            torch.testing.assert_close(decoding.logits[row], model.logits(model(*pack([read]))[-1:])[0])
        if step == 1:
            decoding.reorder(torch.tensor([2, 0, 2]))
            rows = [2, 0, 2]
        decoding.step(torch.stack([texts[place][len(prompts[place]) + step] for place in rows]))
    assert decoding.lengths.tolist() == [6, 7, 6]


def test_the_loss_reaches_every_parameter_and_each_multiplies_once_a_token() -> None:
    model = make(3).float().train()
    texts = sentences(*LENGTHS)
    hidden = model(*pack(texts))
    label_smoothed_cross_entropy(hidden, model.output_weight, torch.cat(texts), 0.1).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)
    assert multiply_adds(model.config, VOCAB) == (0, matrices)


def test_a_configuration_builds_its_model() -> None:
    config = RecurrentDecoderConfig(16, 1)
    assert isinstance(build_model(config, VOCAB), RecurrentDecoder)
    assert architecture_of(config) == "lstm_decoder_only" and isinstance(make().layers[0], nn.LSTM)
    with pytest.raises(ValueError, match=r"^layers:"):
        RecurrentDecoderConfig(layers=0)
