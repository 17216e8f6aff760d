"""An encoder-decoder that reads prompts, with the interface of a language model: it can be sampled as one.

Letters in shapes: N packed tokens, R rows (responses written side by side), V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from transloom.model.packing import Layout


class PromptReader:
    """The encoder reads the prompt, and the decoder begins its response with the end of text, as in training. A prompt
    takes no room from its response: each may have `max_positions` tokens."""

    def __init__(self, model: Any, end_of_text: int) -> None:
        self.model, self.end_of_text = model, end_of_text
        self.config = model.config

    def start_decoding(self, tokens: Tensor, layout: Layout) -> "ResponseDecoding":
        """Reads packed prompts, (N,) ids, and makes a row of each."""
        return ResponseDecoding(self.model.start_decoding(tokens, layout), layout, self.end_of_text)

    def parameters(self) -> Any:
        """The tensors of the model."""
        return self.model.parameters()


class ResponseDecoding:
    """Responses that are written, one row each. `logits`: (R, V) of every row's next token."""

    def __init__(self, decoding: Any, layout: Layout, end_of_text: int) -> None:
        self._decoding = decoding
        self.logits = self.step(torch.full_like(layout.lengths, end_of_text))

    def step(self, tokens: Tensor) -> Tensor:
        """Feeds one token to each row: (R,) -> logits (R, V)."""
        self.logits = self._decoding.step(tokens)
        return self.logits

    def reorder(self, rows: Tensor, sentences: Tensor | None) -> None:
        """Row r continues the old rows[r], with a copy of that row's prompt."""
        self._decoding.reorder(rows, rows if sentences is None else sentences)
