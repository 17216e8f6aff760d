"""Labelling texts with a trained classifier."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transloom.model.packed_linear import pack_linears
from transloom.pipeline.data.labelled import text_input
from transloom.pipeline.data.text_tokenizer import TextTokenizer
from transloom.pipeline.evaluate.labels import label_log_probabilities
from transloom.pipeline.model_folder import load_classifier

log = logging.getLogger(__name__)

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Classifier:
    """A packed model, its tokenizer, its labels in the order of their numbers, and its folder's metadata."""

    model: Any
    tokenizer: TextTokenizer
    labels: list[str]
    metadata: dict[str, Any]

    @staticmethod
    def load(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> "Classifier":
        """Reads a model folder; see `load_classifier`."""
        loaded = load_classifier(folder, device, dtype)
        return Classifier(pack_linears(loaded.model), loaded.tokenizer, loaded.labels, loaded.metadata)

    def probabilities(self, texts: Sequence[str], first_line: int = 1) -> list[dict[str, float]]:
        """The probability of each label, for each text.

        A text longer than the model's positions is cut, with a warning that counts lines from `first_line`.
        """
        if not texts:
            return []
        context = self.model.config.max_positions
        encoded = self.tokenizer.encode(list(texts))
        for number, ids in enumerate(encoded, start=first_line):
            if len(ids) >= context:  # the end of text stands before the text
                log.warning("line %d has %d tokens; the first %d decide", number, len(ids), context - 1)
        inputs = [text_input(ids, self.tokenizer.end_of_text, context) for ids in encoded]
        values = np.exp(label_log_probabilities(self.model, inputs, BATCH_TOKENS))
        return [dict(zip(self.labels, map(float, row), strict=True)) for row in values]
