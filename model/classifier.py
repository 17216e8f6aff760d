"""A text classifier: the language model's stack, whose projection to the vocabulary is replaced by one to the labels
(Radford et al. 2018, section 3.2).

Letters in shapes: N packed tokens, B texts, C labels.
"""

import torch
from torch import Tensor, nn

from transloom.model.config import DecoderConfig, Pooling
from transloom.model.decoder_only import Stack
from transloom.model.packing import Layout


class TextClassifier(Stack):
    """A label for each packed text; see `forward`."""

    def __init__(self, config: DecoderConfig, vocab_size: int, num_labels: int) -> None:
        super().__init__(config, vocab_size)
        self.head = nn.Parameter(torch.empty(num_labels, config.d_model))
        self._initialise()

    def forward(self, tokens: Tensor, segments: Layout) -> Tensor:
        """One vector for each text, (B, d_model), by `config.pooling`; times `output_weight` transposed it gives the
        logits of the labels.

        Args:
            tokens: (N,) ids of texts that follow each other.
        Raises:
            ValueError: a text of more than max_positions tokens.
        """
        return self.dropout(pool(super().forward(tokens, segments), segments, self.config.pooling))

    @property
    def output_weight(self) -> Tensor:
        """The projection to the labels, (C, d_model)."""
        return self.head


def pool(hidden: Tensor, layout: Layout, pooling: Pooling) -> Tensor:
    """The vector of each text: hidden (N, d_model) -> (B, d_model)."""
    if pooling is Pooling.last:
        return hidden.index_select(0, layout.lengths.cumsum(0) - 1)
    text_of_token = layout.cells // layout.shape[1]
    texts = torch.arange(len(layout.lengths), device=hidden.device)
    # A product sums in the same order each time; index_add_ on a GPU does not.
    exact = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    shares = (text_of_token == texts[:, None]).to(exact.dtype) / layout.lengths[:, None]  # (B, N)
    return (shares @ exact).to(hidden.dtype)
