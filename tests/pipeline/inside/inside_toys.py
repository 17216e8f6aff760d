"""What the tests of pipeline/inside share: small models, and examples in memory."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from transloom.model.config import DecoderConfig, TransformerConfig
from transloom.model.decoder_only import DecoderOnly
from transloom.model.transformer import Transformer
from transloom.pipeline.data.pairs import collate_pairs
from transloom.pipeline.data.pieces import collate_pieces, cut_documents
from transloom.pipeline.inside.examples import Sample
from transloom.pipeline.train.objective import LanguageModelObjective, TranslationObjective

VOCAB, END = 12, 11
MARKS = np.arange(VOCAB) == 9  # 9 is punctuation
TEXTS = [[1, 2, 9, 1, 2, 3, 9, 1, END], [4, 5, 4, 5, END], [9, 6, 7, 9, 6, 7, END]]


class Rows:
    """Examples in memory."""

    def __init__(self, **columns: Sequence[Sequence[int]]) -> None:
        self._data = {name: [np.array(ids) for ids in rows] for name, rows in columns.items()}
        self.columns = tuple(columns)
        self.lengths = np.array([[len(ids) for ids in rows] for rows in self._data.values()]).T

    def __len__(self) -> int:
        return len(self.lengths)

    def get(self, column: str, row: int) -> np.ndarray:
        return self._data[column][row]


class TextTask:
    """What a sample asks of a task of language models."""

    collate = staticmethod(collate_pieces)

    def objective(self, model: Any) -> LanguageModelObjective:
        return LanguageModelObjective(model, 0.0)


class PairTask:
    collate = staticmethod(collate_pairs)

    def objective(self, model: Any) -> TranslationObjective:
        return TranslationObjective(model, 0.0)


def text_sample() -> Sample:
    pieces = cut_documents(50, END, Rows(text=TEXTS))
    return Sample(cast(Any, TextTask()), pieces, np.arange(len(TEXTS)))


def pair_sample() -> Sample:
    pairs = Rows(source=[[4, 5, 6, 3], [5, 4, 3]], target=[[8, 9, 7, 3], [9, 8, 3]])
    return Sample(cast(Any, PairTask()), pairs, np.arange(2))


def decoder(causal: bool = True, **more: Any) -> DecoderOnly:
    torch.manual_seed(0)
    config = DecoderConfig(2, 16, 32, 4, key_value_heads=2, dropout=0.0, max_positions=50, causal=causal, **more)
    return DecoderOnly(config, VOCAB).eval()


def translator() -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerConfig(16, 32, 4, encoder_layers=2, decoder_layers=1, max_positions=50), VOCAB).eval()
