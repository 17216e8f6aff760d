"""A trained model as a folder: weights (`model.safetensors`, fp32), shape and origin (`config.json`), and the files of
its tokenizer. No pickle, nothing that runs code."""

import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from transloom.model.build import ARCHITECTURES, Model, ModelConfig, architecture_of, build_model
from transloom.model.classifier import TextClassifier
from transloom.model.config import (
    DecoderConfig,
    FeatureMap,
    LanguageModelConfig,
    Positions,
    RecurrentConfig,
    RecurrentDecoderConfig,
)
from transloom.model.decoder_only import DecoderOnly
from transloom.model.flops import multiply_adds
from transloom.model.recurrent_decoder import RecurrentDecoder
from transloom.pipeline.data.text_tokenizer import (
    CHARACTERS_FILE,
    JSON_FILE,
    SETTINGS_FILE,
    TextTokenizer,
    load_text_tokenizer,
    tokenizer_file,
)
from transloom.pipeline.data.tokenizer import MAX_MODEL_BYTES, MODEL_FILE
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import hash_of, sha256_file, write_json
from transloom.pipeline.huggingface import huggingface_config, is_huggingface, read_huggingface
from transloom.pipeline.untrusted import inside, open_plain, read_foreign_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
TOKENIZER_FILES = (MODEL_FILE, JSON_FILE, CHARACTERS_FILE, SETTINGS_FILE)  # those that there are
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MASKED = "masked_language_model"  # the task, whose models have an id more than the tokenizer
OTHER_TASKS = ("classification", MASKED)  # of the architecture of language models, which continue no text
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
    "longest_trained": int,
    "task": str,
    "labels": list[str],
    "template": str,
    "max_response_tokens": int,
    "initial": dict[str, Any],
}

AnyTokenizer = TypeVar("AnyTokenizer")


def save_model(
    folder: Path, config: ModelConfig, weights: Mapping[str, Tensor], tokenizer: Path, about: Mapping[str, Any]
) -> None:
    """Writes a model folder.

    Args:
        tokenizer: its file, or the folder that has it.
        about: what else a reader should know: languages, run, steps, scores. JSON values. "precision", one of DTYPES,
            is what the model is meant to compute in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.float().contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)
    sources = [tokenizer / name for name in TOKENIZER_FILES] if tokenizer.is_dir() else [tokenizer]
    copied = [Path(shutil.copyfile(source, folder / source.name)).name for source in sources if source.exists()]
    if not copied:
        raise UserError(f"{tokenizer} has no tokenizer: run the prepare job first")
    shape = json.loads(json.dumps(dataclasses.asdict(config), default=lambda value: value.value))
    files = {name: sha256_file(folder / name) for name in (WEIGHTS, *copied)}
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
    if getattr(config, "positions", None) is Positions.learned:
        places = (config.max_positions or 0) * config.d_model
    return sum(multiply_adds(config, vocab_size)) + places


def _feature_numbers(config: ModelConfig) -> int:
    """Numbers of a model's random features, which are made with it."""
    if isinstance(config, RecurrentConfig | RecurrentDecoderConfig) or config.feature_map is not FeatureMap.favor:
        return 0
    return sum(config.depths) * config.random_features * config.key_width


def _build_fitting(folder: Path, config: ModelConfig, vocab_size: int, num_labels: int | None = None) -> Model:
    """The model with fresh weights, where those in the folder fit it; else nothing of its size is allocated.

    Args:
        num_labels: see `build_model`.
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
    gib = 4 * (numbers + room * config.d_model + _feature_numbers(config)) / 2**30
    if gib > (memory := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30):
        raise UserError(
            f"{folder / CONFIG} and {WEIGHTS} describe a model of {gib:,.1f} GiB (model.max_positions is {room:,}), "
            f"and this machine has {memory:,.1f} GiB of memory. Load it on a larger one"
        )
    advice = "Take all files of the folder from one copy"
    if numbers < (wanted := _matrix_numbers(config, vocab_size)):
        raise UserError(
            f"{file} does not fit {CONFIG} and the tokenizer: it has {numbers:,} numbers, and the matrices of that "
            f"model alone {wanted:,}. {advice}"
        )
    model = build_model(config, vocab_size, num_labels)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{file} does not fit {CONFIG} and the tokenizer: {_short(name)} has the shape {found.get(name)}, and "
                f"in that model {expected.get(name)}. {advice}"
            )
    return model


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are. The smallest and the largest tell, ten times as fast as a look at each."""
    return all(bool(bound.isfinite()) for bound in tensor.aminmax())


@dataclass(frozen=True)
class StoredModel:
    """A model folder's content, of which nothing is built.

    Attributes:
        tokenizer: SHA-256 of the tokenizer's file.
        sha256: of the weights' file.
    """

    folder: Path
    config: ModelConfig
    weights: dict[str, Tensor]
    tokenizer: str
    sha256: str


def weights_hash(folder: Path) -> str | None:
    """The SHA-256 of the weights of a model folder, by its config.json, or of a Hugging Face folder, whose files are
    read, once while they stay as they are. None: there are no weights, or the folder is damaged."""
    if not is_huggingface(folder):
        try:
            return read_about(folder)["sha256"].get(WEIGHTS)
        except UserError:
            return None
    sums = [_file_hash(file, file.stat().st_mtime_ns) for file in sorted(folder.glob("*.safetensors"))]
    return sums[0] if len(sums) == 1 else hash_of(sums) if sums else None


@cache
def _file_hash(file: Path, modified: int) -> str:
    return sha256_file(file)


def stored_config(folder: Path) -> ModelConfig:
    """The model's settings in a model folder or a folder of Hugging Face's; no weights are read.

    Raises:
        UserError: config.json is missing or damaged, or describes no model that can be built.
    """
    return (
        huggingface_config(folder, cache_links=True)
        if is_huggingface(folder)
        else _config_of(folder, read_about(folder))
    )


def read_model(folder: Path) -> StoredModel:
    """The content of a model folder, or of a folder of Hugging Face's with its tokenizer.

    Raises:
        UserError: a file is missing or damaged.
    """
    if is_huggingface(folder):
        config, _, weights = read_huggingface(folder, cache_links=True)
        tokenizer = sha256_file(tokenizer_file(folder))
        return StoredModel(folder, config, weights, tokenizer, weights_hash(folder) or "")
    about = read_about(folder)
    config = _config_of(folder, about)
    tokenizer = tokenizer_file(folder).name
    for name in (tokenizer, WEIGHTS):
        _refuse_damaged(folder, name, about["sha256"])
    _read_shapes(inside(folder, WEIGHTS))
    weights = load_file(folder / WEIGHTS)
    _refuse_infinite(folder, weights)
    return StoredModel(folder, config, weights, about["sha256"][tokenizer], about["sha256"][WEIGHTS])


def _refuse_infinite(folder: Path, weights: Mapping[str, Tensor]) -> None:
    if broken := [name for name, tensor in weights.items() if not _is_finite(tensor)]:
        raise UserError(f"{folder / WEIGHTS} is no trained model: {broken[0]} has numbers that are not finite")


def _config_of(folder: Path, about: Mapping[str, Any]) -> ModelConfig:
    """
    Raises:
        UserError: what a folder says of itself does not describe a model.
    """
    try:
        return _config(about.get("architecture", "transformer"), about["model"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} does not describe a model: {error}") from None


def load_model(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype | None,
    load_tokenizer: Callable[[Path], AnyTokenizer],
    refuse: Callable[[ModelConfig, Mapping[str, Any]], None] = lambda config, about: None,
) -> tuple[Model, AnyTokenizer, dict[str, Any]]:
    """Reads a folder that `save_model` wrote: the model in evaluation mode, its tokenizer, and what the folder says.

    Args:
        dtype: to compute in; None: the precision that the folder names, but fp32 for fp16 away from a GPU.
        load_tokenizer: of the folder the tokenizer, which has a vocab_size.
        refuse: (configuration, what the folder says) raises a UserError for a model of another kind, before its
            weights are read.
    Raises:
        UserError: a file is missing, damaged, or does not fit the others.
    """
    about = read_about(folder)
    config = _config_of(folder, about)
    refuse(config, about)
    dtype = dtype or DTYPES[about.get("precision", "fp32")]
    named = [name for name in TOKENIZER_FILES if name in about["sha256"] or (folder / name).exists()]
    for name in named or [MODEL_FILE]:
        _refuse_damaged(folder, name, about["sha256"], MAX_MODEL_BYTES)
    tokenizer: Any = load_tokenizer(folder)
    # A masked language model has a mask behind the tokenizer's ids.
    vocab_size = tokenizer.vocab_size + (about.get("task") == MASKED)
    labels = about.get("labels")
    model = _build_fitting(folder, config, vocab_size, None if labels is None else len(labels))
    _refuse_damaged(folder, WEIGHTS, about["sha256"])
    weights = load_file(folder / WEIGHTS)
    _refuse_infinite(folder, weights)
    model.load_state_dict(weights)
    if dtype is torch.float16 and device.type == "cpu":
        dtype = torch.float32
    return model.to(device, dtype).eval(), tokenizer, about


@dataclass(frozen=True)
class LoadedLanguageModel:
    """A language model in evaluation mode, its tokenizer, and what its folder says of it; empty of Hugging Face's."""

    model: DecoderOnly | RecurrentDecoder
    tokenizer: TextTokenizer
    metadata: dict[str, Any]


def load_language_model(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> LoadedLanguageModel:
    """A decoder-only model from a model folder, or from a folder of Hugging Face's with its tokenizer.

    Args:
        dtype: to compute in; None: the precision that the folder names, of Hugging Face's fp32.
    Raises:
        UserError: a file is missing, damaged or does not fit the others, or the model is no language model.
    """
    if not is_huggingface(folder):
        model, tokenizer, metadata = load_model(folder, device, dtype, load_text_tokenizer, _refuse_translator)
        assert isinstance(model, DecoderOnly | RecurrentDecoder)
        return LoadedLanguageModel(model, tokenizer, metadata)
    config, vocab_size, weights = read_huggingface(folder, cache_links=True)
    tokenizer = load_text_tokenizer(folder)
    _refuse_larger_tokenizer(tokenizer, vocab_size, folder)
    decoder = DecoderOnly(config, vocab_size)
    decoder.load_state_dict(weights)
    return LoadedLanguageModel(decoder.to(device, dtype or torch.float32).eval(), tokenizer, {})


def _refuse_translator(config: ModelConfig, about: Mapping[str, Any]) -> None:
    if not isinstance(config, LanguageModelConfig):
        raise UserError("the model translates, and continues no text: transloom translate <run> < your_text")
    if "labels" in about:
        raise UserError("the model labels texts, and continues none: transloom classify <run> < your_text")


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier in evaluation mode, its tokenizer, its labels in the order of their numbers, and its folder's
    metadata."""

    model: TextClassifier
    tokenizer: TextTokenizer
    labels: list[str]
    metadata: dict[str, Any]


def load_classifier(folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> LoadedClassifier:
    """A text classifier from a model folder.

    Args:
        dtype: to compute in; None: the precision that the folder names.
    Raises:
        UserError: a file is missing, damaged or does not fit the others, or the model is no classifier.
    """
    model, tokenizer, metadata = load_model(folder, device, dtype, load_text_tokenizer, _refuse_without_labels)
    assert isinstance(model, TextClassifier)
    return LoadedClassifier(model, tokenizer, metadata["labels"], metadata)


def _refuse_without_labels(config: ModelConfig, about: Mapping[str, Any]) -> None:
    if not isinstance(config, DecoderConfig) or not about.get("labels"):
        raise UserError(
            f"the model is of task={about.get('task', 'translation')}, and labels no texts. Train one with "
            "task=classification"
        )


def is_language_model(folder: Path) -> bool:
    """Whether a folder's config.json is that of a model that continues texts: Transloom's own, or any of Hugging Face's
    form.

    Raises:
        UserError: the file can't be read as JSON.
    """
    try:
        values = read_foreign_json(folder / CONFIG)
    except FileNotFoundError:
        return False
    if not isinstance(values, dict) or values.get("task") in OTHER_TASKS:
        return False
    return "model_type" in values or values.get("architecture") in ("decoder_only", "lstm_decoder_only")


def _refuse_larger_tokenizer(tokenizer: TextTokenizer, vocab_size: int, folder: Path) -> None:
    """
    Args:
        vocab_size: the model's.
    Raises:
        UserError: the tokenizer has ids that the model has not.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{folder}: the tokenizer's largest id is {tokenizer.vocab_size - 1:,}, and the model's vocabulary has "
            f"{vocab_size:,} ids, from 0. Take model and tokenizer from one folder; where the tokenizer names no end "
            f"of text, name it as eos_token in {SETTINGS_FILE}"
        )
