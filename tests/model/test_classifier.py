"""A text classifier: packing, pooling, what a token sees, and gradients."""

import dataclasses

import pytest
import torch

from transloom.model.classifier import TextClassifier
from transloom.model.config import DecoderConfig, Normalization, Pooling, Positions
from transloom.model.losses import label_smoothed_cross_entropy
from transloom.model.packing import Layout

VOCAB, LABELS = 30, 3
SHAPE = DecoderConfig(layers=2, d_model=16, d_ff=32, num_heads=2, dropout=0.0, max_positions=12)
ROTARY = dataclasses.replace(
    SHAPE, positions=Positions.rotary, normalization=Normalization.rms, bias=False, key_value_heads=1
)
TEXTS = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12]]
EVERY = [
    dataclasses.replace(shape, causal=causal, pooling=pooling)
    for shape in (SHAPE, ROTARY)
    for causal in (True, False)
    for pooling in Pooling
]


def make(config: DecoderConfig) -> TextClassifier:
    torch.manual_seed(0)
    return TextClassifier(config, VOCAB, LABELS).double().eval()


def pooled(model: TextClassifier, texts: list[list[int]]) -> torch.Tensor:
    row = torch.tensor([token for text in texts for token in text])
    return model(row, Layout.of(torch.tensor([len(text) for text in texts])))


@pytest.mark.parametrize("config", EVERY, ids=lambda one: f"{one.positions.value}-{one.causal}-{one.pooling.value}")
def test_packed_texts_are_labelled_as_each_alone(config: DecoderConfig) -> None:
    model = make(config)
    together = model.logits(pooled(model, TEXTS))
    alone = torch.cat([model.logits(pooled(model, [text])) for text in TEXTS])
    assert together.shape == (3, LABELS)
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("causal", [True, False])
def test_pooling_is_the_mean_over_a_text_s_tokens_or_its_last_token(causal: bool) -> None:
    model = make(dataclasses.replace(SHAPE, causal=causal))
    row = torch.tensor([token for text in TEXTS for token in text])
    hidden = super(TextClassifier, model).forward(row, Layout.of(torch.tensor([5, 2, 3])))
    by_text = hidden.split([5, 2, 3])
    torch.testing.assert_close(
        pooled(model, TEXTS), torch.stack([part.mean(0) for part in by_text]), rtol=1e-5, atol=1e-6
    )
    last = make(dataclasses.replace(SHAPE, causal=causal, pooling=Pooling.last))
    torch.testing.assert_close(pooled(last, TEXTS), torch.stack([part[-1] for part in by_text]))


def test_only_without_causal_does_a_token_see_those_behind_it() -> None:
    for causal in (True, False):
        model = make(dataclasses.replace(SHAPE, causal=causal))
        layout = Layout.of(torch.tensor([4]))
        first, second = (super(TextClassifier, model).forward(torch.tensor([3, 4, 5, last]), layout) for last in (6, 7))
        assert torch.equal(first[:3], second[:3]) == causal


def test_the_head_s_gradients_are_those_of_differences_and_every_weight_has_one() -> None:
    model = make(dataclasses.replace(SHAPE, causal=False)).train()
    labels = torch.tensor([0, 2, 1])

    def loss() -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model.logits(pooled(model, TEXTS)), labels, reduction="sum")

    loss().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())
    assert model.head.grad is not None
    for place in ((0, 0), (1, 5), (2, 15)):
        gradient, step = model.head.grad[place].item(), 1e-5
        with torch.no_grad():
            model.head[place] += step
            above = loss().item()
            model.head[place] -= 2 * step
            below = loss().item()
            model.head[place] += step
        assert gradient == pytest.approx((above - below) / (2 * step), rel=1e-5)


def test_the_loss_of_packed_texts_with_filler_is_cross_entropy() -> None:
    model = TextClassifier(SHAPE, VOCAB, LABELS).eval()
    vectors = pooled(model, [*TEXTS, [0], [0, 0]])
    labels = torch.tensor([0, 2, 1])
    loss = label_smoothed_cross_entropy(vectors, model.output_weight, labels, 0.0)
    expected = torch.nn.functional.cross_entropy(model.logits(vectors[:3]), labels, reduction="sum")
    assert loss.num_tokens == 3
    torch.testing.assert_close(loss.total, expected)
