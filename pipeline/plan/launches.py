"""How many kernels a micro-batch starts: counted, as torch dispatches them for a small model of the same layers."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from transloom.model.build import ModelConfig, build_model
from transloom.model.config import (
    DecoderConfig,
    LanguageModelConfig,
    RecurrentConfig,
    RecurrentDecoderConfig,
    TransformerConfig,
)
from transloom.model.losses import label_smoothed_cross_entropy
from transloom.model.packing import Layout
from transloom.pipeline.data.pairs import PairBatch
from transloom.pipeline.train.objective import TranslationObjective

VOCAB = 16
# Operations that only look at what is there in another way.
NO_WORK = frozenset(
    [
        "view",
        "transpose",
        "t",
        "expand",
        "slice",
        "select",
        "split",
        "unsqueeze",
        "squeeze",
        "permute",
        "detach",
        "alias",
        "unbind",
        "as_strided",
        "_unsafe_view",
        "split_with_sizes",
        "chunk",
        "_local_scalar_dense",
    ]
)


@cache
def launches(config: ModelConfig) -> int:
    """Kernels of a micro-batch's forward and backward pass, gradients' accumulation included. Each layer has as many as
    the one before it, on either side."""
    narrow = _narrow(config)
    if isinstance(narrow, LanguageModelConfig):
        base, deeper = (_dispatched(replace(narrow, layers=layers)) for layers in (1, 2))
        return base + (config.depths[0] - 1) * (deeper - base)
    base = _dispatched(replace(narrow, encoder_layers=1, decoder_layers=1))
    encoder = _dispatched(replace(narrow, encoder_layers=2, decoder_layers=1)) - base
    decoder = _dispatched(replace(narrow, encoder_layers=1, decoder_layers=2)) - base
    return base + (config.depths[0] - 1) * encoder + (config.depths[1] - 1) * decoder


def _dispatched(config: ModelConfig) -> int:
    state = torch.get_rng_state()
    try:
        model = build_model(config, VOCAB).train()
        row = torch.arange(18) % (VOCAB - 4) + 4
        layout = Layout.of(torch.tensor([4, 5, 6, 3]))  # of unlike lengths, so that there is padding
        with torch.enable_grad(), _Counting() as counting:
            if isinstance(config, LanguageModelConfig):
                hidden = model(row, layout)
                label_smoothed_cross_entropy(hidden, model.output_weight, row, 0.1).total.backward()
            else:
                objective = TranslationObjective(model, 0.1)
                objective(PairBatch(row, layout, row, layout, row, len(row))).total.backward()
    finally:
        torch.set_rng_state(state)
    return counting.operations + len(list(model.parameters()))  # each gradient is added up


def _narrow(config: ModelConfig) -> ModelConfig:
    match config:
        case TransformerConfig():
            value_width = 2 if config.key_width == config.value_width else 4
            sizes = {"d_model": 2 * config.num_heads, "d_ff": 4, "d_k": 2, "d_v": value_width, "max_positions": 8}
            return replace(config, **sizes, **_narrow_attention(config))
        case RecurrentConfig() | RecurrentDecoderConfig():
            return replace(config, d_model=4)
        case DecoderConfig():
            sizes = {"d_model": 2 * config.num_heads, "d_ff": 4, "max_positions": 8}
            return replace(config, **sizes, **_narrow_attention(config))


def _narrow_attention(config: TransformerConfig | DecoderConfig) -> dict[str, int]:
    """A window that the counted texts do not fit into, if long texts do not fit into the model's."""
    reaches_all = config.window >= config.max_positions
    return {
        "window": 8 if reaches_all else 2,
        "global_tokens": min(1, config.global_tokens),
        "random_features": min(4, config.random_features),
    }


class _Counting(TorchDispatchMode):
    """Counts operations that do work."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.operations += name not in NO_WORK and "empty" not in name
        return func(*args, **(kwargs or {}))
