"""What the tests of both models share: small ones in float64, and packed sentences."""

from typing import Any

import torch
from torch import Tensor

from transloom.model.config import Norm, Positions, RecurrentConfig, TransformerConfig
from transloom.model.packing import Layout
from transloom.model.recurrent import Recurrent
from transloom.model.transformer import Transformer

VOCAB = 29
SIZES = {"d_model": 16, "d_ff": 32, "num_heads": 4, "encoder_layers": 2, "decoder_layers": 2}


def make_transformer(
    norm: Norm = Norm.post, positions: Positions = Positions.sinusoidal, **settings: Any
) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(**SIZES, **settings, norm=norm, positions=positions, max_positions=64)
    return Transformer(config, VOCAB).double().eval()


def make_recurrent(encoder_layers: int = 2, decoder_layers: int = 3) -> Recurrent:
    torch.manual_seed(0)
    return Recurrent(RecurrentConfig(16, encoder_layers, decoder_layers), VOCAB).double().eval()


def sentences(*lengths: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, VOCAB, (length,), generator=generator) for length in lengths]


def pack(parts: list[Tensor]) -> tuple[Tensor, Layout]:
    return torch.cat(parts), Layout.of(torch.tensor([len(part) for part in parts]))


def run(model: Transformer | Recurrent, sources: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
    """The decoder's output by sentence."""
    hidden = model(*pack(sources), *pack(targets))
    return list(hidden.split([len(target) for target in targets]))
