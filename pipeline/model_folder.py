"""A language model's folder: Transloom's own, or one of Hugging Face's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.decoder_only import DecoderOnly
from pipeline.data.text_tokenizer import TextTokenizer, load_text_tokenizer
from pipeline.huggingface import read_huggingface


@dataclass(frozen=True)
class LoadedLanguageModel:
    """A model in evaluation mode, its tokenizer, and what its folder says of it ("precision" among it)."""

    model: DecoderOnly
    tokenizer: TextTokenizer
    metadata: dict[str, Any]


def load_language_model(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> LoadedLanguageModel:
    """
    Args:
        dtype: to compute in; None: that of the folder's weights.
    Raises:
        UserError: see `read_huggingface` and `load_text_tokenizer`.
    """
    config, vocab_size, weights = read_huggingface(folder, cache_links=True)
    stored = weights["embedding.weight"].dtype
    model = DecoderOnly(config, vocab_size)
    model.load_state_dict(weights)
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    return LoadedLanguageModel(
        model.to(device, dtype or stored).eval(), load_text_tokenizer(folder), {"precision": names[stored]}
    )
