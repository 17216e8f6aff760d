"""What generation and scoring ask of a language model and of its tokenizer.

Letters in shapes: N packed tokens, R rows (texts that are continued side by side), V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from model.packing import Layout
from pipeline.generate.beam import Decoding


class Continuation(Decoding, Protocol):
    """Texts that are being continued, one row each. `step` and `reorder` are those of `Decoding`."""

    @property
    def logits(self) -> Tensor:
        """(R, V) for the token after each prompt."""
        ...


class LanguageModel(Protocol):
    """A decoder-only model."""

    @property
    def config(self) -> Any:
        """Has `max_positions`: the tokens that the model can read at once, or None for any number."""
        ...

    def __call__(self, tokens: Tensor, layout: Layout, /) -> Tensor:
        """Packed texts, (N,) ids -> hidden (N, width)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, width) -> (N, V)"""
        ...

    def start_decoding(self, tokens: Tensor, layout: Layout, /) -> Continuation:
        """Reads packed prompts, (N,) ids, one row each."""
        ...

    def parameters(self) -> Any:
        """The tensors of the model."""
        ...


class TextTokenizer(Protocol):
    """Text to token ids and back. `encode` adds no symbol to a text."""

    @property
    def end_of_text(self) -> int:
        """The id of the symbol that ends a document, and that an empty prompt begins with."""
        ...

    @property
    def vocab_size(self) -> int: ...

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text."""
        ...

    def decode(self, ids: Sequence[int], /) -> str:
        """The text of ids. Bytes that are no UTF-8 become U+FFFD."""
        ...


def device_of(model: LanguageModel) -> torch.device:
    """Where the model's weights are."""
    return next(iter(model.parameters())).device


def pack(sequences: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Layout]:
    """Sequences of ids, each at least one long, as one row of tokens (N,) and its layout, on the device."""
    layout = Layout.of(torch.tensor([len(ids) for ids in sequences]))
    tokens = torch.from_numpy(np.concatenate(sequences).astype(np.int64))
    return tokens.to(device), layout.to(device)
