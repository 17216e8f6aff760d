"""What generation and scoring ask of a language model, and whether a folder holds one.

Letters in shapes: N packed tokens, R rows (texts that are continued side by side), V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from model.packing import Layout
from pipeline.data import packing
from pipeline.data.text_tokenizer import SETTINGS_FILE, TextTokenizer
from pipeline.errors import UserError
from pipeline.generate.beam import Decoding
from pipeline.run_folder import MODEL_CONFIG
from pipeline.untrusted import read_foreign_json


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


def is_language_model(folder: Path) -> bool:
    """Whether a folder's config.json is that of a language model: Transloom's own, or any of Hugging Face's form.

    Raises:
        UserError: the file can't be read as JSON.
    """
    try:
        values = read_foreign_json(folder / MODEL_CONFIG)
    except FileNotFoundError:
        return False
    return isinstance(values, dict) and ("model_type" in values or values.get("architecture") == "decoder_only")


def refuse_larger_tokenizer(tokenizer: TextTokenizer, vocab_size: int, folder: Path) -> None:
    """
    Args:
        vocab_size: the model's.
    Raises:
        UserError: the tokenizer has ids that the model has not.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{folder}: the tokenizer's largest id is {tokenizer.vocab_size - 1:,}, and the model's vocabulary has "
            f"{vocab_size:,} ids, from 0. Take model and tokenizer from one folder; where the tokenizer names no end "
            f"of text, name it as eos_token in {SETTINGS_FILE}"
        )


def device_of(model: LanguageModel) -> torch.device:
    """Where the model's weights are."""
    return next(iter(model.parameters())).device


def pack(sequences: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Layout]:
    """Sequences of ids, each at least one long, as one row of tokens (N,) and its layout, on the device."""
    tokens, layout = packing.pack(list(sequences), filler=[])
    return tokens.to(device), layout.to(device)
