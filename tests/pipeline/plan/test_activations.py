"""The formulas of what the forward pass keeps, against what torch is seen to keep."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from transloom.model.build import ModelConfig, build_model
from transloom.model.config import (
    Activation,
    Attention,
    DecoderConfig,
    FeatureMap,
    Norm,
    Normalization,
    Positions,
    RecurrentConfig,
    RecurrentDecoderConfig,
    TransformerConfig,
)
from transloom.model.decoder_only import DecoderOnly
from transloom.model.packing import Layout
from transloom.model.recurrent_decoder import RecurrentDecoder
from transloom.pipeline.plan.activations import MicroBatch, activation_bytes, has_onednn_lstm

SHAPE = TransformerConfig(d_model=64, d_ff=192, num_heads=4, encoder_layers=2, decoder_layers=3, dropout=0.1)


def kept_bytes(model: nn.Module, lengths: list[int], dtype: torch.dtype) -> int:
    """All that lies in memory for the backward pass but the parameters, the output included; each storage once."""
    model = model.to(dtype).train()
    storages: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in (*model.parameters(), *model.buffers())}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    layout = Layout.of(torch.tensor(lengths))
    tokens = torch.randint(4, 90, (sum(lengths),))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        is_language_model = isinstance(model, DecoderOnly | RecurrentDecoder)
        keep(model(tokens, layout) if is_language_model else model(tokens, layout, tokens, layout))
    return sum(storages.values())


MODERN: dict[str, Any] = {
    "norm": Norm.pre,
    "positions": Positions.rotary,
    "normalization": Normalization.rms,
    "activation": Activation.swiglu,
    "key_value_heads": 2,
    "bias": False,
}
GPT = DecoderConfig(layers=3, d_model=64, d_ff=192, num_heads=4, dropout=0.0)
LLAMA = replace(
    GPT,
    positions=Positions.rotary,
    normalization=Normalization.rms,
    activation=Activation.swiglu,
    key_value_heads=2,
    bias=False,
    tied=False,
)
CASES: dict[str, tuple[ModelConfig, torch.dtype]] = {
    "fp32": (SHAPE, torch.float32),
    "bf16": (SHAPE, torch.bfloat16),
    "pre-norm": (replace(SHAPE, norm=Norm.pre), torch.bfloat16),
    "no dropout": (replace(SHAPE, dropout=0.0), torch.bfloat16),
    "heads of two widths": (replace(SHAPE, d_k=8, d_v=24), torch.float32),
    "wide feed-forward": (replace(SHAPE, d_ff=1024, positions=Positions.learned), torch.bfloat16),
    "gelu": (replace(SHAPE, activation=Activation.gelu), torch.bfloat16),
    "swiglu": (replace(SHAPE, activation=Activation.swiglu), torch.float32),
    "rms": (replace(SHAPE, normalization=Normalization.rms), torch.bfloat16),
    "rms in fp32": (replace(SHAPE, normalization=Normalization.rms, norm=Norm.pre), torch.float32),
    "rotary": (replace(SHAPE, positions=Positions.rotary), torch.bfloat16),
    "grouped queries": (replace(SHAPE, key_value_heads=2), torch.float32),
    "modern": (replace(SHAPE, **MODERN), torch.bfloat16),
    "modern in fp32": (replace(SHAPE, **MODERN), torch.float32),
    "gpt": (GPT, torch.float32),
    "gpt in bf16": (GPT, torch.bfloat16),
    "gpt with dropout": (replace(GPT, dropout=0.1), torch.float32),
    "post-norm gpt": (replace(GPT, norm=Norm.post, positions=Positions.sinusoidal), torch.bfloat16),
    "llama": (LLAMA, torch.float32),
    "llama in bf16": (LLAMA, torch.bfloat16),
    "window": (replace(GPT, attention=Attention.window, window=20), torch.float32),
    "window in bf16": (replace(LLAMA, attention=Attention.window, window=20, global_tokens=5), torch.bfloat16),
    "window with dropout": (replace(GPT, attention=Attention.window, window=20, dropout=0.1), torch.float32),
    "window, alibi": (
        replace(GPT, attention=Attention.window, window=20, positions=Positions.alibi, causal=False, global_tokens=4),
        torch.float32,
    ),
    "window of both sides": (replace(SHAPE, attention=Attention.window, window=30), torch.float32),
    "alibi": (replace(LLAMA, positions=Positions.alibi), torch.float32),
    "linear": (replace(GPT, attention=Attention.linear), torch.float32),
    "linear in bf16": (replace(LLAMA, attention=Attention.linear), torch.bfloat16),
    "random features": (replace(LLAMA, attention=Attention.linear, feature_map=FeatureMap.favor), torch.float32),
    "linear of both sides": (replace(SHAPE, attention=Attention.linear, d_k=8, d_v=24), torch.float32),
    "lstm": (RecurrentConfig(d_model=64, encoder_layers=2, decoder_layers=2), torch.float32),
    "lstm in bf16": (RecurrentConfig(d_model=128, encoder_layers=2, decoder_layers=2), torch.bfloat16),
    "deep lstm": (RecurrentConfig(d_model=64, encoder_layers=4, decoder_layers=3), torch.float32),
    "lstm language model": (RecurrentDecoderConfig(d_model=64, layers=3), torch.float32),
}


LONG_CASES = ["fp32", "modern in fp32", "heads of two widths", "gpt", "gpt with dropout", "llama"]
LONG_CASES += [name for name in CASES if "window" in name or "alibi" in name or "linear" in name or "features" in name]
LENGTHS = pytest.mark.parametrize("lengths", [[16] * 32, [40] * 8 + [36] * 8], ids=["without padding", "with padding"])


@pytest.mark.parametrize("name", CASES)
@LENGTHS
def test_what_is_kept_is_what_was_counted(name: str, lengths: list[int]) -> None:
    check(*CASES[name], lengths)


@pytest.mark.parametrize("name", LONG_CASES)
@pytest.mark.parametrize("lengths", [[128] * 4, [130] * 2 + [120] * 2], ids=["without padding", "with padding"])
def test_what_is_kept_of_long_texts_is_what_was_counted(name: str, lengths: list[int]) -> None:
    check(*CASES[name], lengths)


@pytest.mark.parametrize("name", [name for name in CASES if "lstm" in name])
@LENGTHS
@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's own flags say so of themselves
def test_what_torchs_own_lstm_keeps_is_what_was_counted(name: str, lengths: list[int]) -> None:
    """It runs in bf16 on processors for which oneDNN has no LSTM in bf16; without oneDNN, on all."""
    with torch.backends.mkldnn.flags(enabled=False):
        assert not has_onednn_lstm(CASES[name][1])
        check(*CASES[name], lengths)


def check(config: ModelConfig, dtype: torch.dtype, lengths: list[int]) -> None:
    torch.manual_seed(0)
    found = kept_bytes(build_model(config, 100), lengths, dtype)
    tokens, longest = sum(lengths), max(lengths)
    batch = MicroBatch(
        source_tokens=tokens,
        target_tokens=tokens,
        longest=longest,
        bytes_per_number=dtype.itemsize,
        bytes_per_mask=dtype.itemsize,
        is_packed=False,
        has_lstm_kernel=has_onednn_lstm(dtype),
        grid=len(lengths) * longest / tokens,
    )
    expected = activation_bytes(config, batch)
    print(f"kept {found:,}, counted {expected:,.0f}, {expected / found:.3f}")
    assert expected == pytest.approx(found, rel=0.03)


def test_packed_attention_keeps_neither_grid_nor_weights() -> None:
    grid = MicroBatch(1000, 1000, 50, 2, 1, is_packed=False)
    packed = replace(grid, is_packed=True)
    assert activation_bytes(SHAPE, packed) < activation_bytes(SHAPE, grid)
    assert activation_bytes(SHAPE, replace(packed, longest=100)) == activation_bytes(SHAPE, packed)
    assert activation_bytes(SHAPE, replace(grid, longest=100)) > activation_bytes(SHAPE, grid)
