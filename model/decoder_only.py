"""The decoder-only language model: GPT (Radford et al. 2018, 2019; Brown et al. 2020) or, by its settings, Llama
(Touvron et al. 2023).

Letters in shapes: N packed tokens, B texts, R rows being decoded, V the vocabulary.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from transloom.model.config import DecoderConfig, Norm
from transloom.model.dropout import Dropout
from transloom.model.grid import grid_of
from transloom.model.key_values import Ragged
from transloom.model.layers import SelfAttentionLayer, make_normalization
from transloom.model.packing import Layout
from transloom.model.positions import make_positions, rotation_at, with_positions


class Stack(nn.Module):
    """Self-attention layers over packed token ids below `vocab_size`: a model without its head; see `forward`.

    A model with a head ends its constructor with `_initialise`.
    """

    sinusoids: Tensor
    rotations: Tensor
    learned_positions: nn.Embedding

    def __init__(self, config: DecoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        make_positions(self, config, config.rotary_base)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(
            SelfAttentionLayer(config, causal=config.causal, dropout=config.dropout, layer=i)
            for i in range(config.layers)
        )
        # A post-norm layer already ends in a normalisation.
        self.norm = make_normalization(config) if config.norm is Norm.pre else nn.Identity()
        self.packed_projection: nn.Module | None = None  # of `pack_linears`

    def _initialise(self) -> None:
        """Draws weights with a standard deviation of `config.initial_std` (Radford et al. 2018, section 4.1: 0.02).
        Weights of products that write to the residual stream are divided by sqrt(2 * layers), the number of sublayers
        (Radford et al. 2019, section 2.3)."""
        std = self.config.initial_std
        for name, parameter in self.named_parameters():
            if name.endswith(("self_attention.output.weight", "feed_forward.outer.weight")):
                nn.init.normal_(parameter, std=std / math.sqrt(2 * self.config.layers))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor, segments: Layout) -> Tensor:
        """The last layer's output at every token. A token sees its own text: with `causal` itself and the tokens
        before it, else all tokens.

        Args:
            tokens: (N,) ids of texts that follow each other.
        Returns:
            (N, d_model)
        Raises:
            ValueError: a text of more than max_positions tokens.
        """
        grid = grid_of(self, segments)
        x = self.embed(tokens, segments.positions)
        for layer in self.layers:
            x = layer(x, grid)
        return self.norm(x)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens, positions (below max_positions): (N,) -> (N, d_model). Embeddings are not scaled by sqrt(d_model),
        unlike the Transformer's."""
        return self.dropout(with_positions(self, self.embedding(tokens), positions))

    @property
    def output_weight(self) -> Tensor:
        """The head's projection, (outputs, d_model)."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """`forward`'s output (N, d_model) -> logits (N, outputs)."""
        if self.packed_projection is not None:
            return self.packed_projection(hidden)
        return nn.functional.linear(hidden, self.output_weight)


class DecoderOnly(Stack):
    """The stack with a projection to the vocabulary. `forward`'s output times `output_weight` transposed gives the
    logits of each token's successor or, of a masked language model, of the token itself."""

    output: nn.Parameter

    def __init__(self, config: DecoderConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        if not config.tied:
            self.output = nn.Parameter(torch.empty(vocab_size, config.d_model))
        self._initialise()

    @property
    def output_weight(self) -> Tensor:
        """The projection to the vocabulary, (V, d_model); with `tied` the embedding."""
        return self.embedding.weight if self.config.tied else self.output

    def start_decoding(self, tokens: Tensor, layout: Layout) -> "DecoderOnlyDecoding":
        """Reads packed prompts, of any lengths, in one forward pass, and prepares to continue each prompt.

        Raises:
            ValueError: a prompt of more than max_positions tokens.
        """
        return DecoderOnlyDecoding(self, tokens, layout)


class DecoderOnlyDecoding:
    """Incremental decoding of R rows, at first one row a prompt.

    Attributes:
        logits: (R, V) of every row's next token.
        lengths: (R,) tokens of each row so far.
    """

    def __init__(self, model: DecoderOnly, tokens: Tensor, layout: Layout) -> None:
        self.model = model
        self.layers = cast(Sequence[SelfAttentionLayer], model.layers)
        self.states = [layer.self_attention.start() for layer in self.layers]
        grid = grid_of(model, layout)
        x = model.embed(tokens, layout.positions)
        for layer, state in zip(self.layers, self.states, strict=True):
            x = layer(x, grid, state)
        last = layout.lengths.cumsum(0) - 1
        self.logits = model.logits(model.norm(x.index_select(0, last)))
        self.lengths = layout.lengths
        self._measure()

    def _measure(self) -> None:
        shortest, self.longest = (int(bound) for bound in self.lengths.aminmax())
        self.is_ragged = shortest < self.longest

    def step(self, tokens: Tensor) -> Tensor:
        """Feeds one token to each row: tokens (R,) -> the new `logits`, (R, V).

        Raises:
            ValueError: a row would have more than max_positions tokens.
        """
        model = self.model
        if self.longest >= model.config.max_positions:
            raise ValueError(f"a text of {self.longest + 1} tokens; model.max_positions is {self.longest}")
        x = model.embed(tokens, self.lengths)
        rotation = rotation_at(model, self.lengths if self.is_ragged else self.lengths[:1])
        ragged = Ragged.of(self.lengths, self.longest, x.dtype) if self.is_ragged else None
        for layer, state in zip(self.layers, self.states, strict=True):
            x = layer.step(x, state, rotation, ragged)
        self.lengths, self.longest = self.lengths + 1, self.longest + 1
        self.logits = model.logits(model.norm(x))
        return self.logits

    def reorder(self, rows: Tensor, sentences: Tensor | None = None) -> None:
        """Row r becomes the old row rows[r]; rows (R',). R' may be smaller or larger than R, and rows may repeat.

        Args:
            sentences: unused, of the protocol `Decoding`: this model keeps no state per sentence.
        """
        self.lengths = self.lengths.index_select(0, rows)
        self.logits = self.logits.index_select(0, rows)
        self._measure()
        for state in self.states:
            state.reorder(rows, self.longest)
