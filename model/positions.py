"""Positions of packed tokens: the tables, and how they enter a model.

Letters in shapes: N packed tokens, K width of a head.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from transloom.model.config import DecoderConfig, Positions, TransformerConfig


def sinusoids(length: int, d_model: int) -> Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i / d_model)), PE(pos, 2i + 1) = cos(same) (section 3.5): (length, d_model)."""
    position = torch.arange(length, dtype=torch.float64)[:, None]
    angle = position * torch.exp(torch.arange(0, d_model, 2, dtype=torch.float64) * (-math.log(10000.0) / d_model))
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1).float()


def rotations(length: int, width: int, base: float = 10000.0) -> Tensor:
    """The cosines, then the sines, of pos / base^(2i / width) (RoPE, section 3.2.2): (length, width)."""
    position = torch.arange(length, dtype=torch.float64)[:, None]
    angle = position * torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(base) / width))
    return torch.cat((angle.cos(), angle.sin()), dim=1).float()


def alibi_slopes(num_heads: int) -> Tensor:
    """By how much a token of distance lowers each head's scores (Press et al. 2022, section 3): 2^(-8 / H),
    2^(-16 / H), …, 2^-8 for a power of two H. For other H: the slopes of the power of two below, then every other one
    of the power of two above, as in the paper's code. (H,)"""
    power = 2 ** (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-4 * (i + 1) / power) for i in range(0, 2 * (num_heads - power), 2)]
    return torch.tensor(slopes, device="cpu")


def make_positions(model: nn.Module, config: TransformerConfig | DecoderConfig, rotary_base: float = 10000.0) -> None:
    """Gives the model the table of its positions: `learned_positions`, `rotations`, `sinusoids` or, one for each head,
    `slopes`."""
    match config.positions:
        case Positions.learned:
            model.learned_positions = nn.Embedding(config.max_positions, config.d_model)
        case Positions.rotary:
            table = rotations(config.max_positions, config.key_width, rotary_base)
            model.register_buffer("rotations", table, persistent=False)
        case Positions.alibi:
            model.register_buffer("slopes", alibi_slopes(config.num_heads), persistent=False)
        case Positions.sinusoidal:
            model.register_buffer("sinusoids", sinusoids(config.max_positions, config.d_model), persistent=False)


def with_positions(model: Any, x: Tensor, positions: Tensor) -> Tensor:
    """Adds the vectors of positions (N,) to the tokens' embeddings x (N, d_model); without such vectors returns x."""
    match model.config.positions:
        case Positions.learned:
            return x + model.learned_positions(positions)
        case Positions.sinusoidal:
            return x + model.sinusoids.index_select(0, positions)
    return x


def rotation_at(model: Any, positions: Tensor) -> Tensor | None:
    """The rotation of self-attention's queries and keys at positions (N,): (N, K); None without rotations."""
    if model.config.positions is not Positions.rotary:
        return None
    return model.rotations.index_select(0, positions)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns the pairs (i, i + K / 2) of every head by the angles of the token's position (RoPE, equation 34).

    Args:
        x: (N, H, K). rotation: (N or 1, K), K / 2 cosines, then K / 2 sines.
    """
    cos, sin = rotation.to(x.dtype)[:, None].chunk(2, dim=-1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
