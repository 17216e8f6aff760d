"""The baseline that the Transformer beat: an LSTM encoder-decoder with attention, the best of 2016.

The network is that of Google's translator (Wu et al. 2016, "GNMT"), with three choices that make it faster on today's
machines, and no weaker:

- The decoder's bottom layer queries attention at the same position, and the context goes into every layer above, as in
  the later GNMT of the MLPerf benchmark; Wu et al. query with the position before. So no layer's input waits for
  another layer's output of an earlier position: each LSTM runs over the whole target in one call of oneDNN or cuDNN,
  where input feeding needs a Python loop over time. The upper layers still remember earlier contexts.
- The score is a scaled product (Luong et al. 2015, "general"), not a layer of tanh for each pair of positions.
- All encoder layers are bidirectional (Chen et al. 2018). Wu et al. made only the first bidirectional, to spread the
  layers over devices. The last layer's state and the context pass through Luong's tanh layer: with one decoder layer
  the model is Luong's global attention.

Letters in shapes: N packed tokens, B sentences, L source positions, T target positions, R hypotheses, V the vocabulary.
Grids are time-major, (L, B, d_model), as LSTM kernels read them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from transloom.model.config import RecurrentConfig
from transloom.model.dropout import Dropout
from transloom.model.grid import padding_mask
from transloom.model.kernels.attention import attend
from transloom.model.packing import Layout, from_grid, to_grid

State = tuple[Tensor, Tensor]  # an LSTM's h and c, each (1, R, d_model)


@dataclass(frozen=True)
class TimeGrid:
    """The indices between packed tokens and a time-major grid.

    Attributes:
        shape: (L, B)
        rows: (L * B,) the packed token in each cell; padding, behind a sentence's end, repeats an arbitrary token.
        places: (N,) the cell of each token.
        flip: (L * B,) the cell whose token moves here when every sentence is reversed; its own inverse.
    """

    shape: tuple[int, int]
    rows: Tensor
    places: Tensor
    flip: Tensor

    @staticmethod
    def of(layout: Layout) -> "TimeGrid":
        """The grid of a layout, on its device."""
        sentences, longest = layout.shape
        lengths = layout.lengths
        times = torch.arange(longest, device=lengths.device)[:, None]
        backwards = torch.where(times < lengths, lengths - 1 - times, times)
        flip = backwards * sentences + torch.arange(sentences, device=lengths.device)
        return TimeGrid(
            (longest, sentences),
            layout.token_of_cell.t().reshape(-1),
            layout.cells % longest * sentences + layout.cells // longest,
            flip.flatten(),
        )

    def spread(self, x: Tensor) -> Tensor:
        """(N, d) -> (L, B, d)"""
        return to_grid(x, self.rows, self.places).view(*self.shape, -1)

    def pack(self, x: Tensor) -> Tensor:
        """(L, B, d) -> (N, d)"""
        return from_grid(x.flatten(0, 1), self.rows, self.places)

    def reverse(self, x: Tensor) -> Tensor:
        """Reverses every sentence, its padding still behind its end: (L, B, d) -> (L, B, d)."""
        return to_grid(x.flatten(0, 1), self.flip, self.flip).view(x.shape)


class EncoderLayer(nn.Module):
    """An LSTM of width d_model / 2 in each direction."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.forwards = make_lstm(d_model, d_model // 2)
        self.backwards = make_lstm(d_model, d_model // 2)

    def forward(self, x: Tensor, grid: TimeGrid) -> Tensor:
        """x: (L, B, d_model) -> (L, B, d_model). The grids are left-aligned, so padding is behind the end in both
        directions and torch's packed sequences, which run position by position on a CPU, are not needed."""
        return torch.cat((self.forwards(x)[0], grid.reverse(self.backwards(grid.reverse(x))[0])), dim=-1)


class Recurrent(nn.Module):
    """Encoder and decoder over packed token ids below `vocab_size`; see `forward`.

    On a CPU without AVX-512 use fp32: there oneDNN has no LSTM in bf16, and torch's runs position by position.
    """

    def __init__(self, config: RecurrentConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        d_model = config.d_model
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)  # times sqrt(d_model): variance 1
        self.dropout = Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(d_model) for _ in range(config.encoder_layers))
        self.key = nn.Linear(d_model, d_model, bias=False)
        # All layers above the bottom one also read the context.
        self.decoder = nn.ModuleList(
            make_lstm(d_model * (2 if i else 1), d_model) for i in range(config.decoder_layers)
        )
        self.output = nn.Linear(2 * d_model, d_model)
        self.packed_projection: nn.Module | None = None  # of `pack_linears`
        for linear in (self.key, self.output):
            nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, source: Tensor, source_layout: Layout, target: Tensor, target_layout: Layout) -> Tensor:
        """Teacher forcing: the decoder's output at every target position.

        Args:
            source: (N source tokens,) ids. target: (N target tokens,) ids, each sentence shifted right by one.
        Returns:
            (N target tokens, d_model); times `output_weight` transposed it gives the logits.
        """
        memory = self.encode(source, source_layout)
        grid = TimeGrid.of(target_layout)
        states: list[State | None] = [None] * len(self.decoder)

        def read(query: Tensor) -> Tensor:
            return memory.read(query.transpose(0, 1)).transpose(0, 1)

        hidden, _ = self.decode(grid.spread(self.embed(target)), states, read)
        return self.combine(grid.pack(hidden))

    def encode(self, source: Tensor, layout: Layout) -> "Memory":
        """source: (N,) ids -> the keys and values of attention."""
        grid = TimeGrid.of(layout)
        x = grid.spread(self.embed(source))
        for i, layer in enumerate(self.encoder):
            change = layer(x, grid)
            x = self.dropout(x + change if i else change)  # residuals from the second layer on, for deep stacks
        mask = None if layout.padding is None else padding_mask(layout.padding, x.dtype)[:, 0]
        return Memory(self.key(x).transpose(0, 1), x.transpose(0, 1), mask)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens: (N,) -> (N, d_model)."""
        return self.dropout(self.embedding(tokens) * math.sqrt(self.config.d_model))

    def decode(
        self, x: Tensor, states: Sequence[State | None], read: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, list[State]]:
        """The decoder's layers.

        Args:
            x: (T, R, d_model), embedded tokens.
            states: of each layer before the first position; None: zeros, as in GNMT.
            read: attention: queries (T, R, d_model) -> contexts (T, R, d_model).
        Returns:
            the top layer's output beside the context, (T, R, 2 * d_model), and the states after the last position.
        """
        layers = cast(Sequence[nn.LSTM], self.decoder)
        x, state = layers[0](x, states[0])
        context = read(x)
        after = [state]
        for layer, before in zip(layers[1:], states[1:], strict=True):
            change, state = layer(torch.cat((self.dropout(x), context), dim=-1), before)
            x = x + change
            after.append(state)
        return torch.cat((x, context), dim=-1), after

    def combine(self, hidden: Tensor) -> Tensor:
        """tanh(W [h; context]), equation 5 of Luong et al. 2015: (N, 2 * d_model) -> (N, d_model)."""
        return self.dropout(torch.tanh(self.output(self.dropout(hidden))))

    @property
    def output_weight(self) -> Tensor:
        """The projection to the vocabulary, (V, d_model): the embedding."""
        return self.embedding.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """`forward`'s output (N, d_model) -> logits (N, V)."""
        if self.packed_projection is not None:
            return self.packed_projection(hidden)
        return nn.functional.linear(hidden, self.output_weight)

    def start_decoding(self, source: Tensor, layout: Layout) -> "RecurrentDecoding":
        """Encodes packed source sentences and prepares to decode them, one hypothesis each."""
        return RecurrentDecoding(self, self.encode(source, layout))


@dataclass(frozen=True)
class Memory:
    """Attention's keys and values (B, L, d_model) of B source sentences; mask (B, 1, L) hides padding."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None

    def read(self, query: Tensor) -> Tensor:
        """(B, Q, d_model) -> (B, Q, d_model)"""
        return attend(query, self.keys, self.values, self.mask)

    def select(self, sentences: Tensor) -> "Memory":
        """The memory of these sentences alone."""
        mask = None if self.mask is None else self.mask.index_select(0, sentences)
        return Memory(self.keys.index_select(0, sentences), self.values.index_select(0, sentences), mask)


class RecurrentDecoding:
    """Incremental decoding of B sentences: the protocol `Decoding` of `pipeline.generate.beam`."""

    def __init__(self, model: Recurrent, memory: Memory) -> None:
        self.model, self.memory = model, memory
        self.states: list[State | None] = [None] * len(model.decoder)

    def step(self, tokens: Tensor) -> Tensor:
        """Feeds one token to each hypothesis: tokens (R,) -> logits (R, V). R is a multiple of B."""
        x = self.model.embed(tokens)[None]
        sentences = self.memory.keys.shape[0]

        def read(query: Tensor) -> Tensor:
            return self.memory.read(query.view(sentences, -1, x.shape[-1])).view(x.shape)

        hidden, after = self.model.decode(x, self.states, read)
        self.states = [*after]
        return self.model.logits(self.model.combine(hidden[0]))

    def reorder(self, rows: Tensor, sentences: Tensor | None) -> None:
        """Hypothesis r continues the old rows[r]; `sentences` (B',) are the ones to keep, None: all."""
        self.states = [
            state and (state[0].index_select(1, rows), state[1].index_select(1, rows)) for state in self.states
        ]
        if sentences is not None:
            self.memory = self.memory.select(sentences)


def make_lstm(inputs: int, outputs: int) -> nn.LSTM:
    """An LSTM (Hochreiter and Schmidhuber 1997) over grids (T, B, inputs) -> (T, B, outputs)."""
    lstm = nn.LSTM(inputs, outputs)
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)
        else:
            for gate in parameter.chunk(4):
                nn.init.xavier_uniform_(gate)
    with torch.no_grad():  # the forget gate, second of four, begins open (Jozefowicz et al. 2015)
        dict(lstm.named_parameters())["bias_ih_l0"].chunk(4)[1].fill_(1.0)
    return lstm
