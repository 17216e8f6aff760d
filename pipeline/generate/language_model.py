"""The protocol of language models for generation and scoring.

Letters in shapes: N packed tokens, R rows (texts continued side by side), V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from transloom.model.packing import Layout
from transloom.pipeline.data import packing
from transloom.pipeline.generate.beam import Decoding


class Continuation(Decoding, Protocol):
    """Texts that a model continues, one row each. `step` and `reorder` are those of `Decoding`."""

    @property
    def logits(self) -> Tensor:
        """(R, V) for the token after each prompt."""
        ...


class LanguageModel(Protocol):
    """A decoder-only model."""

    @property
    def config(self) -> Any:
        """Has `max_positions`: the number of tokens that the model can read at once, None for any number."""
        ...

    def __call__(self, tokens: Tensor, layout: Layout, /) -> Tensor:
        """Packed texts, (N,) ids -> hidden (N, width)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, width) -> (N, V)"""
        ...

    def start_decoding(self, tokens: Tensor, layout: Layout, /) -> Continuation:
        """Reads packed prompts, (N,) ids, and makes a row of each."""
        ...

    def parameters(self) -> Any:
        """The tensors of the model."""
        ...


def device_of(model: Any) -> torch.device:
    """The device of the model's weights."""
    return next(iter(model.parameters())).device


def pack(sequences: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Layout]:
    """Packs sequences of ids, each of at least one, into a row of tokens (N,) and its layout, on the device."""
    tokens, layout = packing.pack(list(sequences), filler=[])
    return tokens.to(device), layout.to(device)
