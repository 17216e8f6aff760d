"""What a model costs, by its shape."""

import torch

from model.build import ModelConfig, build_model


def multiply_adds(config: ModelConfig, vocab_size: int) -> tuple[int, int]:
    """Multiply-adds of the forward pass per (source token, target token).

    A source token pays for the encoder and for the keys and values that the decoder's attention makes of it; a target
    token for the decoder and the output projection. Attention's own products are left out: under 1 % at 30 tokens a
    sentence. Base: 84 d^2 and 84 d^2 + V d. The LSTM with its defaults: 13 d^2 and 22 d^2 + V d. A language
    model's tokens are all target tokens. GPT-2's smallest: 144 d^2 + V d, and 24 L d more in texts of L tokens.
    """
    return config.multiply_adds(vocab_size)


def training_flops(config: ModelConfig, vocab_size: int, *tokens: int) -> int:
    """Floating-point operations to train on these tokens: 2 for each multiply-add, forward once, backward twice.

    Args:
        tokens: of the source and the target, or of a language model's text alone.
    """
    costs = multiply_adds(config, vocab_size)[-len(tokens) :]
    return 6 * sum(cost * count for cost, count in zip(costs, tokens, strict=True))


def count_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Trained numbers, a shared one once; nothing is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config, vocab_size).parameters())
