"""Scores of labels: those of scikit-learn, and what a classifier says of texts in any batch."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss

from transloom.model.classifier import TextClassifier
from transloom.model.config import DecoderConfig
from transloom.pipeline.evaluate.labels import label_log_probabilities, label_scores, macro_f1


@pytest.mark.parametrize("num_labels", [2, 3, 7])
def test_scores_are_those_of_scikit_learn(num_labels: int) -> None:
    random = np.random.default_rng(num_labels)
    logits = random.normal(size=(200, num_labels))
    labels = random.integers(0, num_labels, 200)
    logits[np.arange(200), labels] += 0.7
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    scores, predicted = label_scores(log_probabilities, labels), logits.argmax(axis=1)
    assert scores.accuracy == pytest.approx(100 * accuracy_score(labels, predicted))
    assert scores.macro_f1 == pytest.approx(100 * f1_score(labels, predicted, average="macro"))
    assert scores.loss == pytest.approx(log_loss(labels, np.exp(log_probabilities)))
    assert np.array_equal(scores.confusion, confusion_matrix(labels, predicted))
    assert scores.low < scores.accuracy < scores.high


def test_a_label_that_occurs_nowhere_does_not_count() -> None:
    labels, predicted = [0, 0, 2, 2], [0, 2, 2, 2]
    confusion = np.zeros((4, 4), int)
    np.add.at(confusion, (labels, predicted), 1)
    assert macro_f1(confusion) == pytest.approx(f1_score(labels, predicted, average="macro"))


def test_log_probabilities_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    config = DecoderConfig(layers=1, d_model=16, d_ff=32, num_heads=2, dropout=0.0, max_positions=16, causal=False)
    model = TextClassifier(config, 20, 3).eval()
    random = np.random.default_rng(0)
    texts = [random.integers(0, 20, length) for length in (3, 16, 1, 7, 7, 2)]
    alone = label_log_probabilities(model, texts, 1)
    assert alone.shape == (6, 3)
    np.testing.assert_allclose(np.exp(alone).sum(axis=1), 1.0)
    np.testing.assert_allclose(label_log_probabilities(model, texts, 64), alone, atol=1e-6)
