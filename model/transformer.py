"""The Transformer of "Attention Is All You Need", in the order of the paper's figure 1.

Source, target and output share one embedding matrix (section 3.4), unless the source has one of its own. Letters in
shapes: N packed tokens, B sentences, R hypotheses, V the vocabulary.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from transloom.model.config import Norm, Positions, TransformerConfig
from transloom.model.dropout import Dropout
from transloom.model.grid import Grid, grid_of
from transloom.model.layers import DecoderLayer, SelfAttentionLayer, make_normalization
from transloom.model.packing import Layout
from transloom.model.positions import make_positions, rotation_at, with_positions


class Transformer(nn.Module):
    """Encoder and decoder over packed token ids below `vocab_size`; see `forward`."""

    sinusoids: Tensor
    rotations: Tensor
    learned_positions: nn.Embedding

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        d_model = config.d_model
        self.embedding = nn.Embedding(vocab_size, d_model)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)  # times sqrt(d_model): variance 1
        self.source_embedding: nn.Embedding | None = None
        if not config.shared_embeddings:
            self.source_embedding = nn.Embedding(vocab_size, d_model)
            nn.init.normal_(self.source_embedding.weight, std=d_model**-0.5)
        make_positions(self, config)
        if config.positions is Positions.learned:
            nn.init.normal_(self.learned_positions.weight, std=d_model**-0.5)
        self.dropout = Dropout(config.dropout)
        self.encoder = nn.ModuleList(SelfAttentionLayer(config, layer=i) for i in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config, layer=i) for i in range(config.decoder_layers))
        # A post-norm layer already ends in a normalisation.
        is_pre = config.norm is Norm.pre
        self.encoder_norm = make_normalization(config) if is_pre else nn.Identity()
        self.decoder_norm = make_normalization(config) if is_pre else nn.Identity()
        self.packed_projection: nn.Module | None = None  # of `pack_linears`

    def forward(self, source: Tensor, source_layout: Layout, target: Tensor, target_layout: Layout) -> Tensor:
        """Teacher forcing: the decoder's output at every target position.

        Args:
            source: (N source tokens,) ids. target: (N target tokens,) ids, each sentence shifted right by one.
        Returns:
            (N target tokens, d_model); times `output_weight` transposed it gives the logits.
        """
        source_grid = grid_of(self, source_layout)
        target_grid = grid_of(self, target_layout)
        memory = self.encode(source, source_layout, source_grid)
        x = self.embed(target, target_layout.positions)
        for layer in self.decoder:
            x = layer(x, memory, target_grid, source_grid)
        return self.decoder_norm(x)

    def encode(self, source: Tensor, layout: Layout, grid: Grid) -> Tensor:
        """source: (N,) ids -> memory (N, d_model)."""
        x = self.embed(source, layout.positions, self.source_embedding)
        for layer in self.encoder:
            x = layer(x, grid)
        return self.encoder_norm(x)

    def embed(self, tokens: Tensor, positions: Tensor, table: nn.Embedding | None = None) -> Tensor:
        """tokens, positions (below max_positions): (N,) -> (N, d_model).

        Args:
            table: of the tokens' vectors; None: the target's.
        """
        x = (table or self.embedding)(tokens) * math.sqrt(self.config.d_model)
        return self.dropout(with_positions(self, x, positions))

    @property
    def output_weight(self) -> Tensor:
        """The projection to the vocabulary, (V, d_model): the target's embedding."""
        return self.embedding.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """`forward`'s output (N, d_model) -> logits (N, V)."""
        if self.packed_projection is not None:
            return self.packed_projection(hidden)
        return nn.functional.linear(hidden, self.output_weight)

    def start_decoding(self, source: Tensor, layout: Layout) -> "TransformerDecoding":
        """Encodes packed source sentences and prepares to decode them, one hypothesis each."""
        return TransformerDecoding(self, source, layout)


class TransformerDecoding:
    """Incremental decoding of B sentences: the protocol `Decoding` of `pipeline.generate.beam`."""

    def __init__(self, model: Transformer, source: Tensor, layout: Layout) -> None:
        self.model = model
        grid = grid_of(model, layout)
        memory = model.encode(source, layout, grid)
        self.mask = grid.padding_mask
        self.layers = cast(Sequence[DecoderLayer], model.decoder)
        self.memories = [layer.cross_attention.keys_and_values(memory, grid) for layer in self.layers]
        self.states = [layer.self_attention.start() for layer in self.layers]
        self.position = 0

    def step(self, tokens: Tensor) -> Tensor:
        """Feeds one token to each hypothesis: tokens (R,) -> logits (R, V). R is a multiple of B."""
        positions = torch.full_like(tokens, self.position)
        x = self.model.embed(tokens, positions)
        rotation = rotation_at(self.model, positions[:1])
        for layer, state, memory in zip(self.layers, self.states, self.memories, strict=True):
            x = layer.step(x, state, *memory, self.mask, rotation)
        self.position += 1
        return self.model.logits(self.model.decoder_norm(x))

    def reorder(self, rows: Tensor, sentences: Tensor | None) -> None:
        """Hypothesis r continues the old rows[r]; `sentences` (B',) are the ones to keep, None: all."""
        for state in self.states:
            state.reorder(rows)
        if sentences is not None:
            self.memories = [
                (keys.index_select(0, sentences), values.index_select(0, sentences)) for keys, values in self.memories
            ]
            self.mask = None if self.mask is None else self.mask.index_select(0, sentences)
