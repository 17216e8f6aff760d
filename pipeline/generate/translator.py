"""Translating with a trained model."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transloom.model.build import Model, ModelConfig
from transloom.model.config import DecoderConfig
from transloom.model.packed_linear import pack_linears
from transloom.model.packing import Layout
from transloom.pipeline.data.tokenizer import BOS_ID, EOS_ID, Tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.beam import BeamConfig, Hypothesis, beam_search
from transloom.pipeline.model_folder import load_model

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Translator:
    """A model, its tokenizer, and its folder's metadata."""

    model: Model
    tokenizer: Tokenizer
    about: dict[str, Any]

    @staticmethod
    def load(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> "Translator":
        """Reads a folder written by `save_model`.

        Args:
            dtype: to compute in; None: the precision that the folder names, but without a GPU fp32 in place of fp16.
        Raises:
            UserError: a file is missing, damaged, or does not fit the other files.
        """
        model, tokenizer, about = load_model(folder, device, dtype, Tokenizer.load, _refuse_language_model)
        return Translator(model, tokenizer, about)

    def translate(self, lines: list[str], config: BeamConfig, first_line: int = 1) -> list[str]:
        """Translates each line; an empty line stays empty.

        A line longer than a Transformer's positions is cut, with a warning that counts lines from first_line.
        """
        sources = self.tokenizer.encode_arrays(lines)
        room = self.model.config.max_positions
        for number, ids in enumerate(sources, start=first_line):
            if room is not None and len(ids) > room:
                log.warning(
                    "line %d has %d tokens and is cut to the %d that the model can read", number, len(ids), room
                )
        hypotheses = translate_tokens(pack_linears(self.model), sources, config)
        return self.tokenizer.decode([hypothesis.tokens for hypothesis in hypotheses])


@torch.inference_mode()
def translate_tokens(
    model: Any,
    sources: list[np.ndarray],
    config: BeamConfig,
) -> list[Hypothesis]:
    """The best hypothesis of each tokenised sentence (ending in </s>), in order. The model, one that translates, is in
    evaluation mode.

    Sentences are decoded in batches of similar lengths, longest first.
    """
    room = model.config.max_positions
    device = model.embedding.weight.device
    results: list[Hypothesis] = [Hypothesis([], 0.0)] * len(sources)
    # A sentence of </s> alone is an empty line: its translation is empty.
    order = sorted((i for i, ids in enumerate(sources) if len(ids) > 1), key=lambda i: -len(sources[i]))
    for start in range(0, len(order), config.batch_sentences):
        chosen = order[start : start + config.batch_sentences]
        batch = [_cut(sources[i], room) for i in chosen]
        layout = Layout.of(torch.tensor([len(ids) for ids in batch])).to(device)
        tokens = torch.from_numpy(np.concatenate(batch).astype(np.int64)).to(device)
        limits = layout.lengths + config.extra_tokens
        limits = limits if room is None else limits.clamp(max=room)
        decoding = model.start_decoding(tokens, layout)
        found = beam_search(decoding, limits, config, BOS_ID, EOS_ID)
        for i, hypothesis in zip(chosen, found, strict=True):
            results[i] = hypothesis
    return results


def _cut(ids: np.ndarray, room: int | None) -> np.ndarray:
    return ids if room is None or len(ids) <= room else np.concatenate((ids[: room - 1], ids[-1:]))


def _refuse_language_model(config: ModelConfig, about: Mapping[str, Any]) -> None:
    if "labels" in about:
        raise UserError("the model labels texts, and does not translate: transloom classify <run> < your_text")
    if isinstance(config, DecoderConfig):
        raise UserError('the model continues text, and does not translate: transloom generate <run> "Once upon"')
