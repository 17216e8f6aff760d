"""How likely a language model finds texts: log-probabilities of tokens, and bits per byte of documents.

Letters in shapes: N packed tokens, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transloom.pipeline.data.text_tokenizer import TextTokenizer, bits_per_byte
from transloom.pipeline.generate.language_model import LanguageModel, device_of, pack
from transloom.pipeline.progress import Progress, no_progress

ROWS = 256  # of logits that are held at a time: with a large vocabulary they take more memory than the model


@dataclass(frozen=True)
class Passage:
    """Tokens to read, and which of the next ones are asked for.

    Attributes:
        inputs: (T,) ids that the model reads.
        labels: (S,) ids, S at most T: those that follow the last S inputs.
    """

    inputs: np.ndarray
    labels: np.ndarray


@torch.inference_mode()
def log_probabilities(
    model: LanguageModel, passages: Sequence[Passage], batch_tokens: int = 4096, progress: Progress = no_progress
) -> list[np.ndarray]:
    """The log-probability in nats of each label of each passage, fp64. The model is in evaluation mode.

    Passages of like lengths are read together, the longest first. A result does not depend on its batch, but for the
    rounding of the model's products.

    Args:
        batch_tokens: tokens of a batch with padding; a longer passage is read alone.
    """
    device = device_of(model)
    results = [np.zeros(0)] * len(passages)
    done = 0
    for batch in like_lengths([len(passage.inputs) for passage in passages], batch_tokens):
        progress("scoring, passages", done, len(passages))
        tokens, layout = pack([passages[i].inputs for i in batch], device)
        hidden = model(tokens, layout)
        ends = np.cumsum([len(passages[i].inputs) for i in batch])
        rows = [np.arange(end - len(passages[i].labels), end) for i, end in zip(batch, ends, strict=True)]
        labels = [passages[i].labels for i in batch]
        asked = hidden[torch.from_numpy(np.concatenate(rows)).to(device)]
        scores = _label_scores(model, asked, torch.from_numpy(np.concatenate(labels).astype(np.int64)).to(device))
        for i, part in zip(batch, np.split(scores, np.cumsum([len(ids) for ids in labels])[:-1]), strict=True):
            results[i] = part
        done += len(batch)
    progress("scoring, passages", done, len(passages))
    return results


def _label_scores(model: LanguageModel, hidden: Tensor, labels: Tensor) -> np.ndarray:
    """hidden (N, width), labels (N,) -> log-probabilities (N,)"""
    parts = []
    for rows, ids in zip(hidden.split(ROWS), labels.split(ROWS), strict=True):
        scores = model.logits(rows).double().log_softmax(-1)
        parts.append(scores.gather(1, ids[:, None]).squeeze(1).cpu().numpy())
    return np.concatenate(parts)


def like_lengths(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yields places of texts of like lengths, the longest first, such that the longest of a batch times their number is
    at most batch_tokens."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        size = max(1, batch_tokens // lengths[order[0]])
        yield order[:size]
        order = order[size:]


@dataclass(frozen=True)
class TextScore:
    """How likely a document is.

    Attributes:
        log_probability: of all its tokens, in nats; the first one follows the end of text. The end of text behind the
            document is not among them.
        tokens, bytes: of the document; bytes of its text in UTF-8.
        unknown_bits: what the unknown symbols among the tokens cost beside their loss, see `TextTokenizer`.
    """

    log_probability: float
    tokens: int
    bytes: int
    unknown_bits: float = 0.0

    @property
    def bits_per_byte(self) -> float:
        """NaN of an empty document."""
        return (
            bits_per_byte(-self.log_probability, self.bytes) + self.unknown_bits / self.bytes
            if self.bytes
            else math.nan
        )


def total_score(scores: Sequence[TextScore]) -> TextScore:
    """The documents as one: its bits per byte weigh each byte alike."""
    return TextScore(
        sum(score.log_probability for score in scores),
        sum(score.tokens for score in scores),
        sum(score.bytes for score in scores),
        sum(score.unknown_bits for score in scores),
    )


def score_text(
    model: LanguageModel,
    tokenizer: TextTokenizer,
    documents: Sequence[str],
    stride: int | None = None,
    window: int | None = None,
    batch_tokens: int = 4096,
    progress: Progress = no_progress,
) -> list[TextScore]:
    """The log-probability of each document, every token of it counted once.

    A document longer than the window is read in windows that end `stride` tokens apart, but for the last, which ends
    with the document. Each window counts the tokens that none before it has counted. So a counted token has at least
    `window - stride` tokens before it in its window, where the document has as many. A smaller stride is more exact and
    costs window / stride times the work.

    Args:
        stride: by default half of the window.
        window: tokens that are read at once; by default the model's context, or the whole document.
    Raises:
        ValueError: stride or window is out of range, naming it.
    """
    room = model.config.max_positions
    encoded = tokenizer.encode(list(documents))
    if window is None:
        window = int(room or max((len(ids) for ids in encoded if len(ids)), default=1))
    if window < 1 or (room is not None and window > room):
        raise ValueError(f"window: must be from 1 to the model's context of {room:,} tokens, not {window:,}")
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window:
        raise ValueError(f"stride: must be from 1 to the window of {window:,} tokens, not {stride:,}")
    passages, owners = [], []
    for owner, ids in enumerate(encoded):
        for passage in _windows(ids, tokenizer.end_of_text, window, stride):
            passages.append(passage)
            owners.append(owner)
    totals = np.zeros(len(documents))
    for owner, scores in zip(owners, log_probabilities(model, passages, batch_tokens, progress), strict=True):
        totals[owner] += scores.sum()
    return [
        TextScore(float(total), len(ids), len(text.encode()), _unknown_bits(ids, tokenizer))
        for total, ids, text in zip(totals, encoded, documents, strict=True)
    ]


def _unknown_bits(ids: np.ndarray, tokenizer: TextTokenizer) -> float:
    return 0.0 if tokenizer.unknown is None else int((ids == tokenizer.unknown).sum()) * tokenizer.unknown_bits


def _windows(ids: np.ndarray, end_of_text: int, window: int, stride: int) -> Iterator[Passage]:
    inputs = np.concatenate(([end_of_text], ids[:-1])) if len(ids) else ids
    counted = 0
    while counted < len(ids):
        end = min(len(ids), counted + (stride if counted else window))
        yield Passage(inputs[max(0, end - window) : end], ids[counted:end])
        counted = end
