"""A trained model as a folder, and translating with it.

The folder holds weights (`model.safetensors`, fp32), shape and origin (`config.json`) and `tokenizer.model`: no
pickle, nothing that runs code.
"""

import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.build import ARCHITECTURES, Model, ModelConfig, architecture_of, build_model
from model.config import Norm, Positions
from model.packed_linear import pack_linears
from model.packing import Layout
from pipeline.data.tokenizer import BOS_ID, EOS_ID, MODEL_FILE, Tokenizer
from pipeline.decode import BeamConfig, Hypothesis, beam_search
from pipeline.errors import UserError
from pipeline.files import sha256_file, write_json

log = logging.getLogger(__name__)

WEIGHTS, CONFIG = "model.safetensors", "config.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def save_model(
    folder: Path, config: ModelConfig, weights: Mapping[str, Tensor], tokenizer: Path, about: Mapping[str, Any]
) -> None:
    """Writes a model folder.

    Args:
        tokenizer: a tokenizer.model, or the folder that holds it.
        about: what else a reader should know: languages, run, steps, scores. JSON values. "precision", one of DTYPES,
            is what the model is meant to compute in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.float().contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    source = tokenizer / MODEL_FILE if tokenizer.is_dir() else tokenizer
    shutil.copyfile(source, folder / MODEL_FILE)
    shape = json.loads(json.dumps(dataclasses.asdict(config), default=lambda value: value.value))
    files = {name: sha256_file(folder / name) for name in (WEIGHTS, MODEL_FILE)}
    write_json(folder / CONFIG, {"architecture": architecture_of(config), "model": shape, "sha256": files, **about})


def count_saved(folder: Path) -> int:
    """The trained numbers of a model folder, by the head of its file: no model is built, and nothing loaded."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        names = file.keys()
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def _config(architecture: str, shape: Mapping[str, Any]) -> ModelConfig:
    """What `save_model` wrote of a configuration.

    Raises:
        TypeError, ValueError: it is none, or one of a later version.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: {architecture!r} is none of {', '.join(ARCHITECTURES)}")
    kinds = {"norm": Norm, "positions": Positions}
    return ARCHITECTURES[architecture](**{name: kinds.get(name, lambda x: x)(value) for name, value in shape.items()})


@dataclass(frozen=True)
class Translator:
    """A model, its tokenizer, and what its folder says about it."""

    model: Model
    tokenizer: Tokenizer
    about: dict[str, Any]

    @staticmethod
    def load(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> "Translator":
        """Reads a folder that `save_model` wrote.

        Args:
            dtype: to compute in; None: the precision that the folder names, but fp32 for fp16 away from a GPU.
        Raises:
            UserError: a file is missing, damaged, or does not fit the others.
        """
        try:
            about = json.loads((folder / CONFIG).read_bytes())
            config = _config(about.get("architecture", "transformer"), about["model"])
            expected = about["sha256"]
            dtype = dtype or DTYPES[about.get("precision", "fp32")]
        except FileNotFoundError:
            raise UserError(
                f"{folder} is not a model folder: it has no {CONFIG}. Give the folder model/ of a finished run"
            ) from None
        except KeyError as error:
            raise UserError(
                f"{folder / CONFIG} does not describe a model of Transloom's: it has no {error}. Give a run, or its "
                "folder model/; what was exported is for other programs"
            ) from None
        except (TypeError, ValueError) as error:
            raise UserError(f"{folder / CONFIG} does not describe a model: {error}") from None
        for name in (WEIGHTS, MODEL_FILE):
            if not (folder / name).exists() or sha256_file(folder / name) != expected.get(name):
                raise UserError(
                    f"{folder / name} is missing or damaged: its SHA-256 is not the one in {CONFIG}. "
                    "Restore it from a copy, or remove the folder and evaluate the run again"
                )
        tokenizer = Tokenizer.load(folder)
        model = build_model(config, tokenizer.vocab_size)
        try:
            model.load_state_dict(load_file(folder / WEIGHTS))
        except RuntimeError as error:
            raise UserError(f"{folder / WEIGHTS} does not fit {CONFIG}: {error}") from None
        if dtype is torch.float16 and device.type == "cpu":
            dtype = torch.float32
        return Translator(model.to(device, dtype).eval(), tokenizer, about)

    def translate(self, lines: list[str], config: BeamConfig, first_line: int = 1) -> list[str]:
        """One translation a line, in the lines' order; an empty line stays empty.

        A line longer than a Transformer's positions allow is cut, with a warning that counts lines from first_line.
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
    model: Model,
    sources: list[np.ndarray],
    config: BeamConfig,
) -> list[Hypothesis]:
    """The best hypothesis of each tokenised sentence (ending in </s>), in order. The model is in evaluation mode.

    Sentences are decoded in batches of like lengths, longest first.
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
