"""What a model costs, by its shape."""

import torch

from model.build import ModelConfig, build_model
from model.config import Activation, RecurrentConfig, TransformerConfig


def multiply_adds(config: ModelConfig, vocab_size: int) -> tuple[int, int]:
    """Multiply-adds of the forward pass per (source token, target token).

    A source token pays for the encoder and for the keys and values that the decoder's attention makes of it; a target
    token for the decoder and the output projection. Attention's own products are left out: under 1 % at 30 tokens a
    sentence. Base: 84 d^2 and 84 d^2 + V d. The LSTM with its defaults: 13 d^2 and 22 d^2 + V d.
    """
    match config:
        case TransformerConfig():
            source, target = _transformer(config)
        case RecurrentConfig():
            source, target = _recurrent(config)
    return source, target + vocab_size * config.d_model


def _transformer(config: TransformerConfig) -> tuple[int, int]:
    # Queries, keys, values and output: between the model's width and that of all heads together
    query, key = (config.d_model * heads * config.key_width for heads in (config.num_heads, config.shared_heads))
    value, output = (config.d_model * heads * config.value_width for heads in (config.shared_heads, config.num_heads))
    products = 3 if config.activation is Activation.swiglu else 2
    attention, feed_forward = query + key + value + output, products * config.d_model * config.d_ff
    source = config.encoder_layers * (attention + feed_forward) + config.decoder_layers * (key + value)
    return source, config.decoder_layers * (attention + query + output + feed_forward)


def _recurrent(config: RecurrentConfig) -> tuple[int, int]:
    """An LSTM has four gates, each a product with its input and one with its state."""
    square = config.d_model**2
    direction = 4 * (config.d_model // 2) * (config.d_model + config.d_model // 2)
    source = config.encoder_layers * 2 * direction + square  # the keys
    bottom, above, output = 8 * square, 12 * square, 2 * square  # a layer above the bottom one also reads the context
    return source, bottom + (config.decoder_layers - 1) * above + output


def training_flops(config: ModelConfig, vocab_size: int, source_tokens: int, target_tokens: int) -> int:
    """Floating-point operations to train on these tokens: 2 for each multiply-add, forward once, backward twice."""
    source, target = multiply_adds(config, vocab_size)
    return 6 * (source * source_tokens + target * target_tokens)


def count_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Trained numbers, a shared one once; nothing is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config, vocab_size).parameters())
