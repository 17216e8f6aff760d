"""A language model and its training as they are usually written, in the style of nanoGPT: plain torch, dense batches of
windows, scaled_dot_product_attention, AdamW, autocast.

Letters in shapes: B windows, L their length, H heads, G heads of keys and values, K width of a head, V the vocabulary.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from transloom.model.config import Activation, DecoderConfig, Normalization, Positions
from transloom.model.decoder_only import DecoderOnly
from transloom.model.layers import SelfAttentionLayer


def make_norm(config: DecoderConfig) -> nn.Module:
    if config.normalization is Normalization.rms:
        return nn.RMSNorm(config.d_model, eps=config.norm_epsilon)
    return nn.LayerNorm(config.d_model, eps=config.norm_epsilon, bias=config.bias)


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.shared, self.width = config.num_heads, config.shared_heads, config.key_width
        self.dropout = config.dropout
        self.query_key_value = nn.Linear(config.d_model, (self.heads + 2 * self.shared) * self.width, config.bias)
        self.output = nn.Linear(config.d_model, config.d_model, config.bias)
        self.output_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        B, L, _ = x.shape
        sizes = [heads * self.width for heads in (self.heads, self.shared, self.shared)]
        query, key, value = (
            part.view(B, L, -1, self.width).transpose(1, 2) for part in self.query_key_value(x).split(sizes, dim=2)
        )
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        context = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
            enable_gqa=self.shared < self.heads,
        )
        return self.output_dropout(self.output(context.transpose(1, 2).reshape(B, L, -1)))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, H, L, K), cos and sin (L, K / 2)"""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


class MLP(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.activation = config.activation
        inner = 2 * config.d_ff if config.activation is Activation.swiglu else config.d_ff
        self.inner = nn.Linear(config.d_model, inner, config.bias)
        self.outer = nn.Linear(config.d_ff, config.d_model, config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        match self.activation:
            case Activation.swiglu:
                gate, up = x.chunk(2, dim=-1)
                x = functional.silu(gate) * up
            case Activation.relu:
                x = functional.relu(x)
            case Activation.gelu:
                x = functional.gelu(x)
            case Activation.gelu_tanh:
                x = functional.gelu(x, approximate="tanh")
        return self.dropout(self.outer(x))


class Block(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm, self.attention = make_norm(config), Attention(config)
        self.mlp_norm, self.mlp = make_norm(config), MLP(config)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """Pre-norm, with learned or rotary positions: of GPT-2's or Llama's form."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: DecoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        if config.positions is Positions.learned:
            self.positions = nn.Embedding(config.max_positions, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = make_norm(config)
        self.output = nn.Linear(config.d_model, vocab_size, bias=False)
        if config.tied:
            self.output.weight = self.embedding.weight
        pairs = torch.arange(0, config.key_width, 2) / config.key_width
        angles = torch.arange(config.max_positions)[:, None] * config.rotary_base**-pairs
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) ids -> logits (B, L, V)"""
        length = tokens.shape[1]
        x = self.embedding(tokens)
        rotation = None
        if self.config.positions is Positions.learned:
            x = x + self.positions(torch.arange(length, device=tokens.device))
        else:
            rotation = self.cos[:length], self.sin[:length]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, rotation)
        return self.output(self.norm(x))


@torch.no_grad()
def copy_weights(ours: DecoderOnly, gpt: GPT) -> None:
    """Gives the loop our weights, so that both begin at the same point."""
    gpt.embedding.load_state_dict(ours.embedding.state_dict())
    gpt.output.weight.copy_(ours.output_weight)
    gpt.norm.load_state_dict(ours.norm.state_dict())
    if ours.config.positions is Positions.learned:
        gpt.positions.load_state_dict(ours.learned_positions.state_dict())
    layers = cast(list[SelfAttentionLayer], ours.layers)
    for layer, block in zip(layers, cast(list[Block], gpt.blocks), strict=True):
        block.attention_norm.load_state_dict(layer.around_attention.norm.state_dict())
        block.attention.query_key_value.load_state_dict(layer.self_attention.query_key_value.state_dict())
        block.attention.output.load_state_dict(layer.self_attention.output.state_dict())
        block.mlp_norm.load_state_dict(layer.around_feed_forward.norm.state_dict())
        block.mlp.inner.load_state_dict(layer.feed_forward.inner.state_dict())
        block.mlp.outer.load_state_dict(layer.feed_forward.outer.state_dict())
