"""How well a classifier labels texts: log-probabilities, accuracy, F1 and the confusion matrix.

Letters in shapes: T texts, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from transloom.pipeline.evaluate.accuracy import wilson
from transloom.pipeline.evaluate.likelihood import like_lengths
from transloom.pipeline.generate.language_model import device_of, pack


@torch.inference_mode()
def label_log_probabilities(model: Any, texts: Sequence[np.ndarray], batch_tokens: int) -> np.ndarray:
    """(T, C) log-probabilities of the labels, in nats, fp64. A result does not depend on its batch, but for the
    rounding of the model's products.

    Args:
        model: a `TextClassifier` in evaluation mode.
        texts: ids that the model reads, at least one of each text.
        batch_tokens: tokens of a batch with padding; a longer text is read alone.
    """
    device = device_of(model)
    results = np.zeros((len(texts), len(model.output_weight)))
    for batch in like_lengths([len(ids) for ids in texts], batch_tokens):
        tokens, layout = pack([texts[i] for i in batch], device)
        results[batch] = model.logits(model(tokens, layout)).double().log_softmax(-1).cpu().numpy()
    return results


@dataclass(frozen=True)
class LabelScores:
    """The quality of predicted labels.

    Attributes:
        loss: nats a text. accuracy, low, high: in percent, with the 95 % interval (Wilson 1927).
        macro_f1: in percent: the mean of the labels' F1.
        confusion: (C, C) number of texts by their own label (row) and the predicted label (column).
    """

    loss: float
    accuracy: float
    low: float
    high: float
    macro_f1: float
    confusion: np.ndarray


def label_scores(log_probabilities: np.ndarray, labels: np.ndarray) -> LabelScores:
    """
    Args:
        log_probabilities: (T, C), at least one text. labels: (T,) numbers of the right labels.
    """
    num_texts, num_labels = log_probabilities.shape
    predicted = log_probabilities.argmax(axis=1)
    confusion = np.zeros((num_labels, num_labels), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    hits = int(confusion.trace())
    low, high = wilson(hits, num_texts)
    return LabelScores(
        loss=float(-log_probabilities[np.arange(num_texts), labels].mean()),
        accuracy=100.0 * hits / num_texts,
        low=100.0 * low,
        high=100.0 * high,
        macro_f1=100.0 * macro_f1(confusion),
        confusion=confusion,
    )


def macro_f1(confusion: np.ndarray) -> float:
    """The mean over the labels of 2 hits / (texts of the label + predictions of the label), from 0 to 1. Labels that no
    text has and no text was given are left out, as scikit-learn does."""
    sizes = confusion.sum(axis=1) + confusion.sum(axis=0)
    occurs = sizes > 0
    return float((2.0 * confusion.diagonal()[occurs] / sizes[occurs]).mean())
