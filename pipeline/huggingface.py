"""Folders of GPT-2's and Llama's form, as Hugging Face's transformers writes them: config.json and model.safetensors.

Nothing in a folder is run, and no pickle is read. `_gpt2_names` and `_llama_names` say which of their tensors each of
ours is made of.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from transloom.model.config import (
    NORM_EPSILON,
    Activation,
    Attention,
    DecoderConfig,
    LanguageModelConfig,
    Norm,
    Normalization,
    Positions,
)
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import write_json
from transloom.pipeline.untrusted import NotReadable, inside, open_plain, read_foreign_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MAX_SIZE = 10**9  # of a number in a configuration
MAX_FILES = 1000
GPT2_ACTIVATIONS = {
    "gelu_new": Activation.gelu_tanh,
    "gelu_pytorch_tanh": Activation.gelu_tanh,
    "gelu": Activation.gelu,
    "relu": Activation.relu,
}
# Keys that change what a model computes: the values that say what ours compute. A key that is absent is fine.
_PLAIN = {
    "auto_map": (None,),
    "quantization_config": (None,),
    "sliding_window": (None,),
    "use_sliding_window": (None, False),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
}
_PLAIN_GPT2 = _PLAIN | {"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)}
_PLAIN_LLAMA = _PLAIN | {
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (None, 1, 1.0),
}
_DERIVED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")  # old folders store what follows from the shape


@dataclass(frozen=True)
class Source:
    """What a tensor of ours is made of.

    Attributes:
        names: of their tensors, one on top of the other.
        shapes: theirs.
        is_transposed: GPT-2's products are stored as (inputs, outputs).
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    is_transposed: bool = False


def is_huggingface(folder: Path) -> bool:
    """Whether a folder is one that Hugging Face's transformers wrote: its config.json names a model type."""
    try:
        config = read_foreign_json(_file(folder, CONFIG, cache_links=True))
    except (OSError, UserError):
        return False
    return isinstance(config, dict) and "model_type" in config


def read_huggingface(folder: Path, cache_links: bool = False) -> tuple[DecoderConfig, int, dict[str, Tensor]]:
    """A model from a local folder.

    Args:
        cache_links: whether files may be links into `blobs` beside the `snapshots` that the folder lies in, of which
            Hugging Face's cache is made. Other links that lead out of the folder are always refused.
    Returns:
        its configuration, the vocabulary's size, and the state of `DecoderOnly`, in the types that the file has.
        Dropout, which changes training alone, is GPT-2's `resid_pdrop`; Llama has none.
    Raises:
        UserError: a file is missing, damaged or a pickle; the model computes something that `DecoderOnly` does not, by
            the configuration's key; or tensors do not fit the configuration, by name.
    """
    folder = Path(os.path.realpath(folder))
    settings = _Settings(folder, cache_links)
    config, vocab_size = _config_of(settings)
    return config, vocab_size, _read_weights(folder, cache_links, settings, config, vocab_size)


def huggingface_config(folder: Path, cache_links: bool = False) -> DecoderConfig:
    """As `read_huggingface`, the configuration alone."""
    return _config_of(_Settings(Path(os.path.realpath(folder)), cache_links))[0]


def _config_of(settings: "_Settings") -> tuple[DecoderConfig, int]:
    match settings.get("model_type"):
        case "gpt2":
            return _gpt2_config(settings)
        case "llama":
            return _llama_config(settings)
        case other:
            raise UserError(f"{settings.file}: model_type: {_short(other)} is none of gpt2, llama")


def huggingface_form(config: DecoderConfig) -> dict[str, Any]:
    """The settings of config.json, of Llama's form where positions are rotary, else of GPT-2's.

    Raises:
        UserError: neither has such a model, by the setting's key.
    """
    return _llama_settings(config) if config.positions is Positions.rotary else _gpt2_settings(config)


def write_huggingface(
    folder: Path,
    config: LanguageModelConfig,
    vocab_size: int,
    weights: Mapping[str, Tensor],
    token_ids: Mapping[str, int] | None = None,
) -> None:
    """Writes a folder that transformers reads, and `read_huggingface`; of Llama's form where positions are rotary, else
    of GPT-2's. Biases that GPT-2 has and the model has not become zeros.

    Args:
        weights: the state of `DecoderOnly`.
        token_ids: further entries of config.json, such as bos_token_id and eos_token_id.
    Raises:
        UserError: neither has such a model, by the setting's key.
    """
    if not isinstance(config, DecoderConfig):
        raise UserError("model.architecture: GPT-2 and Llama are Transformers; an LSTM has no form of Hugging Face's")
    is_llama = config.positions is Positions.rotary
    settings = huggingface_form(config)
    theirs: dict[str, Tensor] = {}
    for name, source in _names(config, vocab_size, "llama" if is_llama else "gpt2", "transformer."):
        tensor = weights.get(name)
        if tensor is None and name.endswith("bias") and not config.bias:
            tensor = weights["embedding.weight"].new_zeros(source.shapes[0])
        elif tensor is None:
            raise ValueError(f"the weights have no {name}")
        if source.is_transposed:
            tensor = tensor.t()
        parts = tensor.split([shape[0] for shape in source.shapes])
        theirs |= {part_name: part.contiguous() for part_name, part in zip(source.names, parts, strict=True)}
    folder.mkdir(parents=True, exist_ok=True)
    # A copy of each: tensors that share memory can't be saved.
    save_file({name: tensor.detach().clone() for name, tensor in theirs.items()}, folder / WEIGHTS, {"format": "pt"})
    write_json(folder / CONFIG, settings | {"vocab_size": vocab_size, **(token_ids or {})})


# Configurations -------------------------------------------------------------------------------------------------------


class _Settings:
    """The values of a folder's config.json, each of the type that it should have."""

    def __init__(self, folder: Path, cache_links: bool) -> None:
        self.file = folder / CONFIG
        try:
            values = read_foreign_json(_file(folder, CONFIG, cache_links))
        except FileNotFoundError:
            raise UserError(
                f"{folder} is no model folder of Hugging Face's: it has no {CONFIG}. Give the folder that "
                f"save_pretrained wrote, or a snapshot of the hub's"
            ) from None
        if not isinstance(values, dict):
            raise UserError(f"{self.file}: must have an object, {{…}}")
        self.values = values

    def get(self, key: str, default: Any = None) -> Any:
        """The value, whatever it is."""
        return self.values.get(key, default)

    def count(self, key: str, default: int | None = None) -> int:
        """A number of at least 1."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIZE:
            raise UserError(f"{self.file}: {key}: must be a whole number from 1 to {MAX_SIZE:,}, not {_short(value)}")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MAX_SIZE:
            raise UserError(f"{self.file}: {key}: must be a number, not {_short(value)}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.file}: {key}: must be true or false, not {_short(value)}")
        return value

    def refuse(self, key: str, why: str) -> UserError:
        """The error of a value that no model here has."""
        return UserError(f"{self.file}: {key}: {why}, and is {_short(self.get(key))}")

    def refuse_others(self, plain: Mapping[str, tuple[Any, ...]]) -> None:
        """
        Raises:
            UserError: a key whose value is none of those given for it.
        """
        for key, allowed in plain.items():
            if key in self.values and not any(self.get(key) == value for value in allowed):
                shown = " or ".join("null" if value is None else _short(value) for value in allowed)
                raise self.refuse(key, f"can be {shown} alone")

    def make(self, keys: Mapping[str, str], **values: Any) -> DecoderConfig:
        """The configuration.

        Args:
            keys: their name of each of its fields that can be wrong.
        """
        try:
            return DecoderConfig(**values)
        except ValueError as error:
            field, _, why = str(error).partition(":")
            raise UserError(f"{self.file}: {keys.get(field, field)}:{why}") from None


def _gpt2_config(settings: _Settings) -> tuple[DecoderConfig, int]:
    settings.refuse_others(_PLAIN_GPT2)
    activation = settings.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in GPT2_ACTIVATIONS:
        raise settings.refuse("activation_function", f"can be one of {', '.join(GPT2_ACTIVATIONS)}")
    d_model = settings.count("n_embd", 768)
    keys = {"d_model": "n_embd", "dropout": "resid_pdrop", "norm_epsilon": "layer_norm_epsilon"}
    config = settings.make(
        keys,
        layers=settings.count("n_layer", 12),
        d_model=d_model,
        d_ff=settings.count("n_inner", 4 * d_model),
        num_heads=settings.count("n_head", 12),
        dropout=settings.number("resid_pdrop", 0.1),
        norm_epsilon=settings.number("layer_norm_epsilon", NORM_EPSILON),
        activation=GPT2_ACTIVATIONS[activation],
        max_positions=settings.count("n_positions", 1024),
        tied=settings.flag("tie_word_embeddings", True),
    )
    return config, settings.count("vocab_size", 50257)


def _gpt2_settings(config: DecoderConfig) -> dict[str, Any]:
    expected: dict[str, Enum] = {
        "norm": Norm.pre,
        "normalization": Normalization.layer,
        "positions": Positions.learned,
        "attention": Attention.full,
    }
    _refuse_others(config, expected, "GPT-2")
    if config.shared_heads != config.num_heads:
        raise UserError(f"model.key_value_heads: GPT-2 has as many as num_heads, this model {config.key_value_heads}")
    names = {activation: name for name, activation in reversed(GPT2_ACTIVATIONS.items())}
    if config.activation not in names:
        raise UserError(f"model.activation: GPT-2 has no {config.activation.value} with learned positions")
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": names[config.activation],
        "n_layer": config.layers,
        "n_embd": config.d_model,
        "n_inner": config.d_ff,
        "n_head": config.num_heads,
        "n_positions": config.max_positions,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout),
        "layer_norm_epsilon": config.norm_epsilon,
        "tie_word_embeddings": config.tied,
    }


def _llama_config(settings: _Settings) -> tuple[DecoderConfig, int]:
    settings.refuse_others(_PLAIN_LLAMA)
    d_model, num_heads = settings.count("hidden_size", 4096), settings.count("num_attention_heads", 32)
    if settings.get("head_dim") is not None and settings.count("head_dim") * num_heads != d_model:
        raise settings.refuse("head_dim", f"can be hidden_size / num_attention_heads, {d_model / num_heads:g}, alone")
    kinds = settings.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise settings.refuse("layer_types", "can be full_attention alone")
    keys = {"d_model": "hidden_size", "key_value_heads": "num_key_value_heads", "norm_epsilon": "rms_norm_eps"}
    config = settings.make(
        keys | {"rotary_base": "rope_theta"},
        layers=settings.count("num_hidden_layers", 32),
        d_model=d_model,
        d_ff=settings.count("intermediate_size", 11008),
        num_heads=num_heads,
        key_value_heads=settings.count("num_key_value_heads", num_heads),
        dropout=0.0,
        normalization=Normalization.rms,
        norm_epsilon=settings.number("rms_norm_eps", 1e-6),
        activation=Activation.swiglu,
        positions=Positions.rotary,
        rotary_base=_rotary_base(settings),
        max_positions=settings.count("max_position_embeddings", 2048),
        bias=False,
        tied=settings.flag("tie_word_embeddings", False),
    )
    return config, settings.count("vocab_size", 32000)


def _rotary_base(settings: _Settings) -> float:
    """rope_theta, which newer folders have within rope_parameters."""
    base = settings.number("rope_theta", 10000.0)
    for key in ("rope_scaling", "rope_parameters"):
        rope = settings.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
            raise settings.refuse(key, "can be of the type default alone")
        if unknown := rope.keys() - {"rope_type", "type", "rope_theta"}:
            raise settings.refuse(key, f"can't have {_short(min(unknown))}")
        value = rope.get("rope_theta", base)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_SIZE:
            raise settings.refuse(key, "must have a number as rope_theta")
        base = float(value)
    return base


def _llama_settings(config: DecoderConfig) -> dict[str, Any]:
    expected: dict[str, Enum] = {
        "norm": Norm.pre,
        "normalization": Normalization.rms,
        "activation": Activation.swiglu,
        "attention": Attention.full,
    }
    _refuse_others(config, expected, "Llama")
    if config.bias:
        raise UserError("model.bias: Llama, whose positions are rotary, has no biases, and this model has")
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.shared_heads,
        "head_dim": config.key_width,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rotary_base,  # older programs read this, newer ones the next
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": config.tied,
    }


def _refuse_others(config: DecoderConfig, expected: Mapping[str, Enum], form: str) -> None:
    for field, value in expected.items():
        if (actual := getattr(config, field)) is not value:
            raise UserError(
                f"model.{field}: {form}'s is {value.value}, this model's {actual.value}. The form is Llama's where "
                "model.positions is rotary, else GPT-2's"
            )


# Weights --------------------------------------------------------------------------------------------------------------


def _names(config: DecoderConfig, vocab_size: int, form: str, prefix: str) -> Iterator[tuple[str, Source]]:
    """Each tensor of `DecoderOnly`, and what it is made of.

    Args:
        form: gpt2 or llama. prefix: of GPT-2's names, but for the output's: transformer. or nothing.
    """
    names = _llama_names(config, vocab_size) if form == "llama" else _gpt2_names(config, vocab_size, prefix)
    yield from names
    if not config.tied:
        yield "output", Source(("lm_head.weight",), ((vocab_size, config.d_model),))


def _gpt2_names(config: DecoderConfig, vocab_size: int, prefix: str) -> Iterator[tuple[str, Source]]:
    d, f = config.d_model, config.d_ff
    yield "embedding.weight", Source((f"{prefix}wte.weight",), ((vocab_size, d),))
    yield "learned_positions.weight", Source((f"{prefix}wpe.weight",), ((config.max_positions, d),))
    for i in range(config.layers):
        ours, theirs = f"layers.{i}.", f"{prefix}h.{i}."
        for module, name, inputs, outputs in (
            ("self_attention.query_key_value", "attn.c_attn", d, 3 * d),
            ("self_attention.output", "attn.c_proj", d, d),
            ("feed_forward.inner", "mlp.c_fc", d, f),
            ("feed_forward.outer", "mlp.c_proj", f, d),
        ):
            yield f"{ours}{module}.weight", Source((f"{theirs}{name}.weight",), ((inputs, outputs),), True)
            yield f"{ours}{module}.bias", Source((f"{theirs}{name}.bias",), ((outputs,),))
        for module, name in (("around_attention.norm", "ln_1"), ("around_feed_forward.norm", "ln_2")):
            for kind in ("weight", "bias"):
                yield f"{ours}{module}.{kind}", Source((f"{theirs}{name}.{kind}",), ((d,),))
    for kind in ("weight", "bias"):
        yield f"norm.{kind}", Source((f"{prefix}ln_f.{kind}",), ((d,),))


def _llama_names(config: DecoderConfig, vocab_size: int) -> Iterator[tuple[str, Source]]:
    d, f, keys = config.d_model, config.d_ff, config.shared_heads * config.key_width
    yield "embedding.weight", Source(("model.embed_tokens.weight",), ((vocab_size, d),))
    for i in range(config.layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        query_key_value = tuple(f"{theirs}self_attn.{part}_proj.weight" for part in "qkv")
        yield f"{ours}self_attention.query_key_value.weight", Source(query_key_value, ((d, d), (keys, d), (keys, d)))
        yield f"{ours}self_attention.output.weight", Source((f"{theirs}self_attn.o_proj.weight",), ((d, d),))
        gate_and_up = tuple(f"{theirs}mlp.{part}_proj.weight" for part in ("gate", "up"))
        yield f"{ours}feed_forward.inner.weight", Source(gate_and_up, ((f, d), (f, d)))
        yield f"{ours}feed_forward.outer.weight", Source((f"{theirs}mlp.down_proj.weight",), ((d, f),))
        yield f"{ours}around_attention.norm.weight", Source((f"{theirs}input_layernorm.weight",), ((d,),))
        after = f"{theirs}post_attention_layernorm.weight"
        yield f"{ours}around_feed_forward.norm.weight", Source((after,), ((d,),))
    yield "norm.weight", Source(("model.norm.weight",), ((d,),))


def _read_weights(
    folder: Path, cache_links: bool, settings: _Settings, config: DecoderConfig, vocab_size: int
) -> dict[str, Tensor]:
    """The state of `DecoderOnly`. Names and shapes are compared before a tensor is read."""
    shapes, files = _read_heads(folder, cache_links)
    form = settings.get("model_type")
    advice = "Take all files of the folder from one copy"
    if config.layers > len(shapes):
        raise UserError(f"{folder}: {config.layers:,} layers in {CONFIG}, and only {len(shapes):,} tensors. {advice}")
    prefix = "transformer." if "transformer.wte.weight" in shapes else ""  # folders of the model without its head
    sources = dict(_names(config, vocab_size, form, prefix))
    expected = {
        name: shape for source in sources.values() for name, shape in zip(source.names, source.shapes, strict=True)
    }
    embedding = sources["embedding.weight"].names[0]
    head = "lm_head.weight"
    if config.tied and head in shapes:
        expected[head] = expected[embedding]
    for name in sorted(expected.keys() | shapes.keys()):
        if name not in expected and name.endswith(_DERIVED):
            continue
        if name not in shapes:
            raise UserError(f"{folder}: {_short(name)} is missing, which the model of {CONFIG} has. {advice}")
        if name not in expected:
            raise UserError(f"{folder}: has {_short(name)}, which is no part of the model of {CONFIG}. {advice}")
        if expected[name] != shapes[name]:
            raise UserError(
                f"{folder}: {_short(name)} has the shape {shapes[name]}, and in the model of {CONFIG} "
                f"{expected[name]}. {advice}"
            )
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in expected if files[name] == file}
    for name, tensor in tensors.items():
        if not all(bool(bound.isfinite()) for bound in tensor.aminmax()):
            raise UserError(f"{files[name]}: {_short(name)} has numbers that are none (NaN or infinite). {advice}")
    if config.tied and head in tensors and not torch.equal(tensors[head], tensors[embedding]):
        raise settings.refuse("tie_word_embeddings", f"must be false where {head} is not {embedding}")
    weights = {}
    for name, source in sources.items():
        parts = [tensors.pop(part) for part in source.names]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        weights[name] = tensor.t().contiguous() if source.is_transposed else tensor
    return weights


def _read_heads(folder: Path, cache_links: bool) -> tuple[dict[str, tuple[int, ...]], dict[str, Path]]:
    """The shape of each tensor in the folder, and the file that has it; no tensor is read.

    Raises:
        UserError: there are no safetensors files, or damaged ones, or numbers that are no floating point numbers.
    """
    listed: dict[str, str] | None = None
    names = [WEIGHTS]
    with suppress(FileNotFoundError):
        listed = _read_index(folder, cache_links)
        names = sorted(set(listed.values()))
    shapes: dict[str, tuple[int, ...]] = {}
    files: dict[str, Path] = {}
    for name in names:
        file = _file(folder, name, cache_links)
        try:
            with open_plain(file):
                pass
            with safe_open(file, framework="pt") as opened:
                for tensor in opened.keys():  # noqa: SIM118 (it is no dict)
                    if listed is not None and listed.get(tensor) != name:
                        raise UserError(f"{folder / INDEX}: weight_map: {_short(tensor)} is in {name}")
                    part = opened.get_slice(tensor)
                    if (kind := part.get_dtype()) not in ("F32", "F16", "BF16") and not tensor.endswith(_DERIVED):
                        raise UserError(f"{file}: {_short(tensor)} is of type {kind}, not F32, F16 or BF16")
                    shapes[tensor], files[tensor] = tuple(part.get_shape()), file
        except FileNotFoundError:
            raise UserError(_missing(folder, name)) from None
        except (SafetensorError, OSError, RuntimeError, ValueError, OverflowError, MemoryError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{file} is damaged, or no safetensors file: {error}. Copy it anew") from None
    for tensor, name in (listed or {}).items():
        if tensor not in shapes:
            raise UserError(f"{folder / INDEX}: weight_map: {_short(tensor)} is not in {name}")
    return shapes, files


def _read_index(folder: Path, cache_links: bool) -> dict[str, str]:
    """The file of each tensor, of a model in several files.

    Raises:
        FileNotFoundError: there is no index.
        UserError: it is none.
    """
    index = read_foreign_json(_file(folder, INDEX, cache_links))
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise UserError(f"{folder / INDEX}: weight_map: must name the file of each tensor")
    if (count := len(set(listed.values()))) > MAX_FILES:
        raise UserError(f"{folder / INDEX}: weight_map: names {count:,} files, more than {MAX_FILES:,}")
    return listed


def _missing(folder: Path, name: str) -> str:
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth"))
    if not pickles:
        return f"{folder}: {name} is missing. Copy the folder anew"
    return (
        f"{folder}: {pickles[0]} is a pickle, which can run code when it is read, and there is no {name}. If you trust "
        "where it comes from, convert it: python -c 'from transformers import AutoModelForCausalLM as Model; "
        'Model.from_pretrained("FOLDER").save_pretrained("ANOTHER FOLDER")\''
    )


def _file(folder: Path, name: str, cache_links: bool) -> Path:
    """The file of that name.

    Raises:
        UserError: it lies elsewhere, and not where a link of Hugging Face's cache leads to.
    """
    if cache_links and folder.parent.name == "snapshots":
        file, blobs = folder / name, folder.parent.parent / "blobs"
        if os.path.basename(name) == name and "\0" not in name and file.is_symlink():
            if Path(os.path.realpath(file)).is_relative_to(os.path.realpath(blobs)):
                return file
            raise NotReadable(f"{file} is a link that leads out of {blobs}. Put a copy of the file in its place")
    return inside(folder, name)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
