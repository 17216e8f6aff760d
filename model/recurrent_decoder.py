"""The language model that came before the Transformer: layers of LSTM over the text (Zaremba et al. 2014), with the
interface of `decoder_only.py`.

Letters in shapes: N packed tokens, R rows being decoded, L positions, V the vocabulary. Grids are time-major.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from transloom.model.config import RecurrentDecoderConfig
from transloom.model.dropout import Dropout
from transloom.model.packing import Layout
from transloom.model.recurrent import State, TimeGrid, make_lstm


class RecurrentDecoder(nn.Module):
    """LSTM layers over packed token ids below `vocab_size`, from the second on with a residual sum. The output
    projection is the embedding. `forward`'s output times `output_weight` transposed gives the logits of each token's
    successor."""

    def __init__(self, config: RecurrentDecoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        d_model = config.d_model
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)  # times sqrt(d_model): variance 1
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(make_lstm(d_model, d_model) for _ in range(config.layers))
        self.packed_projection: nn.Module | None = None  # of `pack_linears`

    def forward(self, tokens: Tensor, segments: Layout) -> Tensor:
        """The last layer's output at every token, which sees itself and the tokens before it in its own text.

        Args:
            tokens: (N,) ids of texts that follow each other.
        Returns:
            (N, d_model)
        """
        grid = TimeGrid.of(segments)
        x = grid.spread(self.embed(tokens))
        for i, layer in enumerate(self.layers):
            # Padding stands behind a text's end, so no token sees it.
            x = self.add(i, x, layer(x)[0])
        return grid.pack(x)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens: (N,) -> (N, d_model)"""
        return self.dropout(self.embedding(tokens) * math.sqrt(self.config.d_model))

    def add(self, layer: int, x: Tensor, change: Tensor) -> Tensor:
        """The next layer's input, from a layer's input x and its output, of equal shapes."""
        return self.dropout(x + change if layer else change)

    @property
    def output_weight(self) -> Tensor:
        """The projection to the vocabulary, (V, d_model): the embedding."""
        return self.embedding.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """`forward`'s output (N, d_model) -> logits (N, V)."""
        if self.packed_projection is not None:
            return self.packed_projection(hidden)
        return nn.functional.linear(hidden, self.output_weight)

    def start_decoding(self, tokens: Tensor, layout: Layout) -> "RecurrentDecoderDecoding":
        """Reads packed prompts, of any lengths, and prepares to continue each prompt."""
        return RecurrentDecoderDecoding(self, tokens, layout)


class RecurrentDecoderDecoding:
    """Incremental decoding of R rows, at first one row a prompt.

    Attributes:
        logits: (R, V) of every row's next token.
        lengths: (R,) tokens of each row so far.
        states: of each layer after the rows' last tokens.
    """

    def __init__(self, model: RecurrentDecoder, tokens: Tensor, layout: Layout) -> None:
        self.model, self.lengths = model, layout.lengths
        self.layers = cast(Sequence[nn.LSTM], model.layers)
        self.states: list[State] = []
        x = TimeGrid.of(layout).spread(model.embed(tokens))  # (L, R, d_model)
        lengths = layout.lengths.cpu()  # where torch wants them
        for i, layer in enumerate(self.layers):
            # Packed, for the state after each row's own end.
            packed, state = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
            x = model.add(i, x, pad_packed_sequence(packed, total_length=len(x))[0])
            self.states.append(state)
        last = x[layout.lengths - 1, torch.arange(len(lengths), device=x.device)]
        self.logits = model.logits(last)

    def step(self, tokens: Tensor) -> Tensor:
        """Feeds one token to each row: tokens (R,) -> the new `logits`, (R, V)."""
        x = self.model.embed(tokens)[None]
        for i, layer in enumerate(self.layers):
            change, self.states[i] = layer(x, self.states[i])
            x = self.model.add(i, x, change)
        self.lengths = self.lengths + 1
        self.logits = self.model.logits(x[0])
        return self.logits

    def reorder(self, rows: Tensor, sentences: Tensor | None = None) -> None:
        """Row r becomes the old row rows[r]; rows (R',). R' may be smaller or larger than R, and rows may repeat.

        Args:
            sentences: unused, of the protocol `Decoding`: this model keeps no state per sentence.
        """
        self.lengths = self.lengths.index_select(0, rows)
        self.logits = self.logits.index_select(0, rows)
        self.states = [(h.index_select(1, rows), c.index_select(1, rows)) for h, c in self.states]
