"""A trained model as a folder, and translating with it.

The folder holds weights (`model.safetensors`, fp32), shape and origin (`config.json`) and `tokenizer.model`: no
pickle, nothing that runs code.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.build import ARCHITECTURES, Model, ModelConfig, architecture_of, build_model
from model.config import Positions, TransformerConfig
from model.flops import multiply_adds
from model.packed_linear import pack_linears
from model.packing import Layout
from pipeline.data.tokenizer import BOS_ID, EOS_ID, MAX_MODEL_BYTES, MODEL_FILE, Tokenizer
from pipeline.errors import UserError
from pipeline.files import sha256_file, write_json
from pipeline.generate.beam import BeamConfig, Hypothesis, beam_search
from pipeline.untrusted import inside, open_plain, read_foreign_json

log = logging.getLogger(__name__)

WEIGHTS, CONFIG = "model.safetensors", "config.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_SIZE = 2**31  # of a number in a model's shape
# What config.json has, where it has it.
_KINDS: dict[str, Any] = {
    "architecture": str,
    "model": dict[str, Any],
    "sha256": dict[str, str],
    "precision": str,
    "steps": list[int],
    "snapshots": dict[str, str],
    "run": str,
    "source_language": str | None,
    "target_language": str | None,
}


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
    """The trained numbers of a model folder, by the head of its file: no model is built, and nothing loaded.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    return sum(math.prod(shape) for shape in _read_shapes(folder / WEIGHTS).values())


def read_about(folder: Path) -> dict[str, Any]:
    """What a model folder says of itself, each known key of its type.

    Raises:
        UserError: it has no config.json, or one that `save_model` can't have written.
    """
    file = folder / CONFIG
    try:
        about = read_foreign_json(inside(folder, CONFIG))
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a model folder: it has no {CONFIG}. Give the folder model/ of a finished run"
        ) from None
    if not isinstance(about, dict):
        raise UserError(f"{file} does not describe a model: it must have an object, {{…}}. Restore it from a copy")
    for name in ("model", "sha256"):
        if name not in about:
            raise UserError(
                f"{file} does not describe a model of Transloom's: it has no {name!r}. Give a run, or its folder "
                "model/; what was exported is for other programs"
            )
    for name, kind in _KINDS.items():
        if name in about and not _has_kind(about[name], kind):
            raise UserError(f"{file} does not describe a model: {name} can't be {_short(about[name])}")
    if about.get("precision", "fp32") not in DTYPES:
        raise UserError(
            f"{file} does not describe a model: precision: {_short(about['precision'])} is none of {', '.join(DTYPES)}"
        )
    return about


def _has_kind(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a type: int, str, an Enum, a union, or a list or dict of some. A float may be written
    as a whole number; true and false are numbers to Python alone."""
    origin, of = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is list:
        return isinstance(value, list) and all(_has_kind(item, of[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_has_kind(item, of[1]) for item in value.values())
    if of:
        return any(_has_kind(value, one) for one in of)
    if issubclass(kind, Enum):
        return value in [member.value for member in kind]
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _config(architecture: str, shape: Mapping[str, Any]) -> ModelConfig:
    """What `save_model` wrote of a configuration.

    Raises:
        ValueError: it is none, or one of a later version.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: {architecture!r} is none of {', '.join(ARCHITECTURES)}")
    kinds = get_type_hints(ARCHITECTURES[architecture])
    for name, value in shape.items():
        if name not in kinds:
            raise ValueError(f"model.{name}: there is no such setting")
        if not _has_kind(value, kinds[name]) or (isinstance(value, int | float) and abs(value) > MAX_SIZE):
            raise ValueError(f"model.{name}: can't be {_short(value)}")
    enums: dict[str, Any] = {
        name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Enum)
    }
    return ARCHITECTURES[architecture](**{name: enums.get(name, lambda x: x)(value) for name, value in shape.items()})


def _refuse_damaged(folder: Path, name: str, expected: Mapping[str, str], limit: int | None = None) -> None:
    """
    Args:
        expected: SHA-256 by name.
        limit: of the file's size, in bytes.
    Raises:
        UserError: the file is missing, larger, or not the one that was written.
    """
    file = inside(folder, name)
    found = None
    with suppress(FileNotFoundError), open_plain(file) as opened:
        if limit is None or os.fstat(opened.fileno()).st_size <= limit:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found is None or found != expected.get(name):
        raise UserError(
            f"{file} is missing or damaged: its SHA-256 is not the one in {CONFIG}. "
            "Restore it from a copy, or remove the folder and evaluate the run again"
        )


def _read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a safetensors file, by its head alone.

    Raises:
        UserError: it is missing or damaged, or holds other numbers than floating point ones.
    """
    try:
        with open_plain(file):
            pass
        with safe_open(file, framework="pt") as opened:  # its head must fit the file's size, each tensor the next
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
            kinds = {name: part.get_dtype() for name, part in parts.items()}
            shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
    except FileNotFoundError:
        raise UserError(
            f"{file} is missing. Restore it from a copy, or remove the folder and evaluate the run again"
        ) from None
    except (SafetensorError, OSError, RuntimeError, ValueError, OverflowError, MemoryError) as error:
        raise UserError(
            f"{file} is damaged, or no safetensors file: {error}. Restore it from a copy, or remove the folder and "
            "evaluate the run again"
        ) from None
    for name, kind in kinds.items():
        if kind not in ("F32", "F16", "BF16"):
            raise UserError(f"{file} does not hold a model: {_short(name)} is of type {kind}, not F32")
    return shapes


def _matrix_numbers(config: ModelConfig, vocab_size: int) -> int:
    """Nearly all trained numbers of a model: those of its matrices, each of which multiplies a token once. (To count
    all takes torch's device "meta", whose first use takes seconds.)"""
    places = 0
    if isinstance(config, TransformerConfig) and config.positions is Positions.learned:
        places = config.max_positions * config.d_model
    return sum(multiply_adds(config, vocab_size)) + places


def _build_fitting(folder: Path, config: ModelConfig, vocab_size: int) -> Model:
    """The model with fresh weights, where those in the folder fit it; else nothing of its size is allocated.

    Raises:
        UserError: the weights are another model's, or more than this machine's memory.
    """
    file = folder / WEIGHTS
    found = _read_shapes(inside(folder, WEIGHTS))
    layers = sum(config.depths)
    if layers > len(found):
        raise UserError(f"{file} does not fit {CONFIG}: {layers:,} layers, and only {len(found):,} tensors")
    room = config.max_positions or 0
    numbers = sum(math.prod(shape) for shape in found.values())
    gib = 4 * (numbers + room * config.d_model) / 2**30
    if gib > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30):
        raise UserError(
            f"{folder / CONFIG} and {WEIGHTS} describe a model of {gib:,.1f} GiB (model.max_positions is {room:,}), "
            f"and this machine has {memory:,.1f} GiB of memory. Load it on a larger one"
        )
    advice = "Take all files of the folder from one copy"
    if numbers < (wanted := _matrix_numbers(config, vocab_size)):
        raise UserError(
            f"{file} does not fit {CONFIG} and {MODEL_FILE}: it has {numbers:,} numbers, and the matrices of that "
            f"model alone {wanted:,}. {advice}"
        )
    model = build_model(config, vocab_size)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{file} does not fit {CONFIG} and {MODEL_FILE}: {_short(name)} has the shape {found.get(name)}, and "
                f"in that model {expected.get(name)}. {advice}"
            )
    return model


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are. The smallest and the largest tell, ten times as fast as a look at each."""
    return all(bool(bound.isfinite()) for bound in tensor.aminmax())


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
        about = read_about(folder)
        try:
            config = _config(about.get("architecture", "transformer"), about["model"])
        except (TypeError, ValueError) as error:
            raise UserError(f"{folder / CONFIG} does not describe a model: {error}") from None
        dtype = dtype or DTYPES[about.get("precision", "fp32")]
        _refuse_damaged(folder, MODEL_FILE, about["sha256"], MAX_MODEL_BYTES)
        tokenizer = Tokenizer.load(folder)
        model = _build_fitting(folder, config, tokenizer.vocab_size)
        _refuse_damaged(folder, WEIGHTS, about["sha256"])
        weights = load_file(folder / WEIGHTS)
        if broken := [name for name, tensor in weights.items() if not _is_finite(tensor)]:
            raise UserError(f"{folder / WEIGHTS} is no trained model: {broken[0]} has numbers that are not finite")
        model.load_state_dict(weights)
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
