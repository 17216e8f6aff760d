"""The operations and parameters of a model, by its shape."""

import torch

from transloom.model.build import ModelConfig, build_model
from transloom.model.config import LanguageModelConfig, RecurrentDecoderConfig


def multiply_adds(config: ModelConfig, vocab_size: int) -> tuple[int, int]:
    """Multiply-adds of the forward pass per (source token, target token).

    A source token's cost is the encoder and the decoder's cross-attention keys and values; a target token's cost is the
    decoder and the output projection. Attention's own products are left out: under 1 % at 30 tokens a sentence. Base:
    84 d^2 and 84 d^2 + V d. The LSTM with its defaults: 13 d^2 and 22 d^2 + V d. All tokens of a language model are
    target tokens. GPT-2's smallest: 144 d^2 + V d, plus 24 L d in texts of L tokens.
    """
    return config.multiply_adds(vocab_size)


def training_flops(config: ModelConfig, vocab_size: int, *tokens: int) -> int:
    """Floating-point operations to train on these tokens: 2 for each multiply-add, forward once, backward twice.

    A language model's attention products count as in texts of max_positions tokens, `attention_flops` a token.

    Args:
        tokens: of the source and the target, or of a language model's text alone.
    """
    costs = multiply_adds(config, vocab_size)[-len(tokens) :]
    flops = 6 * sum(cost * count for cost, count in zip(costs, tokens, strict=True))
    return flops + attention_flops(config) * tokens[-1] if isinstance(config, LanguageModelConfig) else flops


def attention_flops(config: LanguageModelConfig) -> int:
    """The share of attention's own products in a language model's `training_flops` a token: 12 * layers * d_model *
    max_positions (Chowdhery et al. 2022, appendix B); of an LSTM 0."""
    if isinstance(config, RecurrentDecoderConfig):
        return 0
    with_products, without = (config.multiply_adds(0, length)[-1] for length in (config.max_positions, 0))
    return 6 * (with_products - without)


def count_parameters(config: ModelConfig, vocab_size: int) -> int:
    """The number of trained parameters, shared ones counted once. Allocates no tensor."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config, vocab_size).parameters())
