"""Several models that translate as one: at each step the mean of their probabilities."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from transloom.model.build import Model
from transloom.model.packing import Layout
from transloom.pipeline.generate.beam import Decoding


@dataclass(frozen=True)
class EnsembleConfig:
    """max_positions: tokens that every model can read; None: any number."""

    max_positions: int | None


class Ensemble:
    """Models with one vocabulary, in evaluation mode. For a search, one model."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = list(models)
        rooms = [model.config.max_positions for model in models if model.config.max_positions is not None]
        self.config = EnsembleConfig(min(rooms, default=None))

    def parameters(self) -> Iterator[Tensor]:
        """The tensors of all models."""
        return (parameter for model in self.models for parameter in model.parameters())

    def start_decoding(self, source: Tensor, layout: Layout) -> "EnsembleDecoding":
        """Each model encodes the packed source sentences, (N,) ids."""
        return EnsembleDecoding([cast(Any, model).start_decoding(source, layout) for model in self.models])


class EnsembleDecoding:
    """Incremental decoding of B sentences: the protocol `Decoding`."""

    def __init__(self, decodings: Sequence[Decoding]) -> None:
        self.decodings = list(decodings)

    def step(self, tokens: Tensor) -> Tensor:
        """Feeds one token to each hypothesis: (R,) -> log of the mean probabilities (R, V), fp32."""
        parts = [decoding.step(tokens).float().log_softmax(-1) for decoding in self.decodings]
        return torch.stack(parts).logsumexp(0) - math.log(len(parts))

    def reorder(self, rows: Tensor, sentences: Tensor | None) -> None:
        """As `Decoding.reorder`, of every model."""
        for decoding in self.decodings:
            decoding.reorder(rows, sentences)
