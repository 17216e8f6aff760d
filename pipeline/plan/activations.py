"""What the forward pass of a micro-batch keeps for the backward pass, counted from the code in `model/`.

The attention grid, where there is one, has GRID cells for each packed token. Letters: d d_model, H heads, L the longest
sentence's tokens, c bytes of the compute type.
"""

from dataclasses import dataclass

import torch
from torch import nn

from transloom.model.build import ModelConfig
from transloom.model.config import (
    Activation,
    Attention,
    DecoderConfig,
    FeatureMap,
    Norm,
    Positions,
    RecurrentConfig,
    RecurrentDecoderConfig,
    TransformerConfig,
)
from transloom.model.kernels.attention import LONG
from transloom.model.linear_attention import CHUNK
from transloom.model.window import Window

GRID = 1.07  # cells for each token: batches have 5 to 7 % of padding (docs/performance.md)
INDEX_BYTES = 8
# Times d_ff: the activation's output, and what its own gradient needs beside it; SwiGLU's two inner products, the gate,
# and what they come to.
INNER = {Activation.relu: 1, Activation.gelu: 2, Activation.gelu_tanh: 2, Activation.swiglu: 4}
# Bytes that an LSTM's kernel keeps for each position beside its input and output, for each number of its output's and
# of its input's width; by the bytes of a number. Measured
LSTM_WORKSPACE = {4: (40.0, 24.0), 2: (24.2, 20.8)}
# Numbers that torch's own LSTM keeps for each one of its output's width: four gates, the cell, its tanh, and the state
# that the next position reads. Its output is a copy of these states, which it does not keep.
LSTM_STEP = 7


@dataclass(frozen=True)
class MicroBatch:
    """What a worker holds at a time: tokens of both sides, its longest sentence, and how it computes.

    Attributes:
        is_packed: attention is a kernel on packed tokens (a GPU in 16 bits), else products on a padded grid.
        bytes_per_mask: of an element that dropout keeps or not: the compute type's on a CPU, a bool's on a GPU.
        has_lstm_kernel: an LSTM is one kernel, oneDNN's or cuDNN's; else torch computes it position by position.
        grid: cells of the padded grid for each token.
    """

    source_tokens: int
    target_tokens: int
    longest: int
    bytes_per_number: int
    bytes_per_mask: int
    is_packed: bool
    has_lstm_kernel: bool = True
    grid: float = GRID


def has_onednn_lstm(dtype: torch.dtype) -> bool:
    """Whether training an LSTM on this machine's CPU runs oneDNN's kernel. torch decides by type and processor; the
    gradient's function tells how it decided."""
    with torch.enable_grad():
        output, _ = nn.LSTM(1, 1, dtype=dtype)(torch.zeros(1, 1, 1, dtype=dtype))
    return "mkldnn" in output.grad_fn.name().lower()


def activation_bytes(config: ModelConfig, batch: MicroBatch) -> float:
    """All that is kept before the loss."""
    match config:
        case TransformerConfig():
            return _transformer(config, batch)
        case RecurrentConfig():
            return _recurrent(config, batch)
        case DecoderConfig():
            return _decoder_only(config, batch)
        case RecurrentDecoderConfig():
            return _recurrent_decoder(config, batch)


def _transformer(config: TransformerConfig, batch: MicroBatch) -> float:
    c, mask = batch.bytes_per_number, batch.bytes_per_mask if config.dropout else 0
    d, queries, context = config.d_model, config.num_heads * config.key_width, config.num_heads * config.value_width
    keys, values = config.shared_heads * config.key_width, config.shared_heads * config.value_width
    grid = 1.0 if batch.is_packed else batch.grid
    # A frame keeps the sum and the normalised input of its sublayer, and dropout's mask
    frame = d * (2 * c + mask)
    feed_forward = config.d_ff * c * INNER[config.activation]
    scores = _scores(config, batch)
    attentions = [_self_attention(config, batch, causal) for causal in (False, True)]
    self_attention = (grid * (queries + keys + values) + context) * c
    # Queries are the target's, keys and values the source's
    cross_target, cross_source = (grid * queries + context) * c + scores, grid * (keys + values) * c
    embedding = d * (c + mask)
    closing = d * c if config.norm is Norm.pre else 0
    # Gathers between tokens and grid: of queries, keys and values, of what is read, and of the context, both ways
    index = 0 if batch.is_packed else config.num_heads * INDEX_BYTES
    source = embedding + closing + (3 + 2 + 1 + grid) * index
    source += config.encoder_layers * (2 * frame + (attentions[0] or self_attention + scores) + feed_forward)
    source += config.decoder_layers * cross_source
    target = embedding + closing + (3 + 1 + grid) * index
    target += config.decoder_layers * (3 * frame + cross_target + feed_forward)
    target += config.decoder_layers * (attentions[1] or self_attention + _causal_scores(config, batch))
    source += _masks(config, batch, causal=False)
    target += _masks(config, batch, causal=True)
    return source * batch.source_tokens + target * batch.target_tokens


def _decoder_only(config: DecoderConfig, batch: MicroBatch) -> float:
    """A language model's tokens are target tokens."""
    c, mask = batch.bytes_per_number, batch.bytes_per_mask if config.dropout else 0
    d, keys_and_values = config.d_model, 2 * config.shared_heads * config.key_width
    grid = 1.0 if batch.is_packed else batch.grid
    frame = d * (2 * c + mask)
    feed_forward = config.d_ff * c * INNER[config.activation]
    attention = _self_attention(config, batch, config.causal)
    attention = attention or (grid * (d + keys_and_values) + d) * c + _causal_scores(config, batch)
    closing = d * c if config.norm is Norm.pre else 0
    gathers = (3 if config.shared_heads == config.num_heads else config.shared_heads / config.num_heads) + 1 + grid
    index = 0 if batch.is_packed else gathers * config.num_heads * INDEX_BYTES
    token = d * (c + mask) + closing + index + config.layers * (2 * frame + attention + feed_forward)
    token += _masks(config, batch, config.causal)
    return token * batch.target_tokens


def _scores(config: TransformerConfig | DecoderConfig, batch: MicroBatch) -> float:
    """Attention's weights, for each query; packed kernels keep a number for each head instead."""
    if batch.is_packed:
        return 4.0 * config.num_heads
    return batch.grid * config.num_heads * batch.longest * batch.bytes_per_number


def _causal_scores(config: TransformerConfig | DecoderConfig, batch: MicroBatch) -> float:
    """The same of tokens that see what stands before them: of long sentences torch's own attention keeps its output in
    the grid and a number for each head, with the keys of shared heads once for each head of queries. Weights of which
    some are dropped are there twice, with the mask."""
    drops = isinstance(config, DecoderConfig) and config.dropout > 0
    # Padding is masked by a bias, and distance lowers scores by another one
    has_bias = config.positions is Positions.alibi or (isinstance(config, DecoderConfig) and not config.causal)
    if batch.is_packed or batch.longest < LONG or drops or has_bias or config.key_width != config.value_width:
        return _scores(config, batch) * (2 + batch.bytes_per_mask / batch.bytes_per_number if drops else 1)
    return batch.grid * config.num_heads * (config.value_width * batch.bytes_per_number + 4.0)


def _self_attention(config: TransformerConfig | DecoderConfig, batch: MicroBatch, causal: bool) -> float | None:
    """Of a layer's attention within a window, or linear attention, for each token; None where it is softmax over the
    whole text."""
    match config.attention:
        case Attention.window if _has_blocks(config, batch):
            return _windowed(config, batch, causal)
        case Attention.linear:
            return _linear(config, batch, causal)
    return None


def _has_blocks(config: TransformerConfig | DecoderConfig, batch: MicroBatch) -> bool:
    """Whether a window is attended to chunk by chunk."""
    is_longer = -(-batch.longest // 2) * 2 > config.window
    return config.attention is Attention.window and is_longer and not batch.is_packed


def _blocks(config: TransformerConfig | DecoderConfig, batch: MicroBatch, causal: bool) -> tuple[float, int]:
    """Cells of the chunks for each token, and keys of a chunk."""
    chunk = Window(config.window).chunk
    cells = batch.grid * -(-batch.longest // chunk) * chunk / batch.longest
    return cells, min(config.global_tokens, batch.longest) + (2 if causal else 3) * chunk


def _windowed(config: TransformerConfig | DecoderConfig, batch: MicroBatch, causal: bool) -> float:
    """Queries, each chunk's keys and values, the context in chunks with a number for each head, and the context. Global
    tokens that see both sides keep what came into the layer, and their own context."""
    c, heads = batch.bytes_per_number, config.num_heads
    cells, keys = _blocks(config, batch, causal)
    widths = config.shared_heads * (config.key_width + config.value_width)
    context = heads * config.value_width
    copies = keys / Window(config.window).chunk
    kept = cells * (heads * config.key_width + widths * copies) * c + context * c
    if isinstance(config, DecoderConfig) and config.dropout:  # torch's plain attention: weights twice, with the mask
        kept += cells * heads * keys * (2 * c + batch.bytes_per_mask)
    else:
        kept += cells * (context * c + 4 * heads)
    if config.global_tokens and not causal:
        of_globals = min(config.global_tokens, batch.longest) / batch.longest
        kept += batch.grid * (heads * config.key_width + widths + of_globals * context) * c
    return kept


def _masks(config: TransformerConfig | DecoderConfig, batch: MicroBatch, causal: bool) -> float:
    """What a window adds to the scores, which all layers share, for each token. Explicit weights do not keep it."""
    if not _has_blocks(config, batch) or (isinstance(config, DecoderConfig) and config.dropout):
        return 0.0
    cells, keys = _blocks(config, batch, causal)
    kept = cells * keys
    has_slopes = config.positions is Positions.alibi
    if has_slopes and not causal:
        kept += batch.grid * min(config.global_tokens, batch.longest)
    return kept * (config.num_heads if has_slopes else 1) * batch.bytes_per_number


def _linear(config: TransformerConfig | DecoderConfig, batch: MicroBatch, causal: bool) -> float:
    """Features of queries and keys, values with ones, and the sums, all in fp32; the context."""
    heads, shared = config.num_heads, config.shared_heads
    is_random = config.feature_map is FeatureMap.favor
    features = config.random_features if is_random else config.key_width
    values = config.value_width + 1
    longest = -(-batch.longest // 2) * 2
    filled = -(-longest // CHUNK) * CHUNK / longest if causal and longest > CHUNK else 1.0
    is_filled, is_grouped, has_padding = filled > 1, causal and shared < heads, batch.grid > 1
    keys_heads = heads if causal else shared
    numbers = (
        filled * (heads * features + keys_heads * (features + values)) + (filled if causal else 1) * heads * values
    )
    numbers += heads  # the weights' sum
    if is_filled:  # the features themselves, beside those that were filled up
        numbers += heads * features
    if is_filled or is_grouped or has_padding:
        numbers += shared * features
    if is_random:
        numbers += (heads + shared) * config.key_width
    return 4 * batch.grid * numbers + heads * config.value_width * batch.bytes_per_number


def _recurrent_decoder(config: RecurrentDecoderConfig, batch: MicroBatch) -> float:
    c, d = batch.bytes_per_number, config.d_model
    mask = batch.bytes_per_mask if config.dropout else 0
    layer = d * (sum(_lstm(batch)) + c + mask)
    return (d * (c + mask) + batch.grid * config.layers * layer) * batch.target_tokens


def _lstm(batch: MicroBatch) -> tuple[float, float]:
    """Bytes that an LSTM keeps for a number of its output, and for a number of its input."""
    c = batch.bytes_per_number
    if not batch.has_lstm_kernel:
        return LSTM_STEP * c, 0.0
    of_output, of_input = LSTM_WORKSPACE[c]
    return of_output + c, of_input


def _recurrent(config: RecurrentConfig, batch: MicroBatch) -> float:
    """What the LSTMs keep is most of it. cuDNN's workspace is taken to be as large as oneDNN's."""
    c, d, grid = batch.bytes_per_number, config.d_model, batch.grid
    mask = batch.bytes_per_mask if config.dropout else 0
    of_output, of_input = _lstm(batch)
    # Two directions of half the width, one of them on the reversed input; a mask
    encoder_layer = d * (of_output + 2 * of_input + 2 * c + mask)
    source = grid * (config.encoder_layers * encoder_layer + 2 * d * c) + d * mask  # with memory and keys; embedding
    bottom = d * (of_output + of_input + c)
    if not batch.has_lstm_kernel:
        bottom += d * c  # attention keeps the bottom layer's output
    above = d * (of_output + 2 * of_input + 2 * c + mask)  # what attention found is half of its input
    weights = batch.longest * c
    target = grid * (bottom + (config.decoder_layers - 1) * above + weights)
    target += d * (mask + 4 * c + 3 * mask)  # embedding, and Luong's tanh layer
    return source * batch.source_tokens + target * batch.target_tokens
