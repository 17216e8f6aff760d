"""Weights that a training begins with, from another run, a model folder, or a Hugging Face folder."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from transloom.model.build import ModelConfig, architecture_of
from transloom.model.config import Attention, FeatureMap, Positions
from transloom.pipeline.errors import UserError
from transloom.pipeline.model_folder import StoredModel

EMBEDDINGS = ("embedding.weight", "source_embedding.weight", "output")  # a row for each token
POSITIONS = "learned_positions.weight"  # a row for each position
# Settings that do not change the meaning of weights.
FREE = ("dropout", "layers", "encoder_layers", "decoder_layers", "max_positions", "tied", "pooling", "initial_std")
HEAD = "head"  # of a classifier


@dataclass(frozen=True)
class Initial:
    """The weights that a new model takes from another model.

    Attributes:
        weights: by the new model's names.
        left_out: the reason, by name, why another weight is not loaded.
        fresh: names of the new model's weights that stay random.
    """

    weights: dict[str, Tensor]
    left_out: dict[str, str]
    fresh: list[str]


def fitting(
    stored: StoredModel, config: ModelConfig, state: Mapping[str, Tensor], tokenizer: str, with_embeddings: bool
) -> Initial:
    """The weights of a stored model that a new model can take.

    Args:
        config: of the new model. state: of the new model; only names and shapes are read.
        tokenizer: the SHA-256 of the new model's tokenizer.
        with_embeddings: false: embeddings and output projection stay random, as another tokenizer requires.
    Raises:
        UserError: the models compute different things (names the setting's key); the tokenizers differ; nothing fits.
    """
    where = f"train.initial: {stored.folder}"
    if type(stored.config) is not type(config):
        raise UserError(
            f"{where} is of architecture {architecture_of(stored.config)}, and model.architecture is "
            f"{architecture_of(config)}"
        )
    for field in dataclasses.fields(config):
        own, other = _meaning(config, field.name), _meaning(stored.config, field.name)
        if field.name not in FREE and own != other:
            raise UserError(
                f"model.{field.name}: is {_word(own)} here and {_word(other)} in {stored.folder} (train.initial); its "
                f"weights would mean something else. Set model.{field.name}={_word(other)}"
            )
    if with_embeddings and stored.tokenizer != tokenizer:
        raise UserError(
            f"{where} has another tokenizer ({stored.tokenizer[:12]}…, here {tokenizer[:12]}…), whose ids mean other "
            f"pieces. Take that tokenizer (of a language model: tokenizer.kind=file tokenizer.path={stored.folder}), "
            "or begin with new embeddings: train.initial_embeddings=false"
        )
    weights: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    for name, tensor in stored.weights.items():
        own = state.get(name)
        if name == HEAD:
            left_out[name] = "a head is of its own corpus's labels"
        elif not with_embeddings and name in EMBEDDINGS:
            left_out[name] = "train.initial_embeddings=false"
        elif own is None:
            left_out[name] = "the new model has no such weight"
        elif tensor.shape == own.shape:
            weights[name] = tensor.float()
        elif name in EMBEDDINGS and len(tensor) > len(own) and tensor.shape[1:] == own.shape[1:]:
            weights[name] = tensor[: len(own)].float().clone()
            left_out[f"{name}[{len(own)}:]"] = "the tokenizer has no such ids"
        elif name == POSITIONS and len(tensor) > len(own) and tensor.shape[1:] == own.shape[1:]:
            weights[name] = tensor[: len(own)].float().clone()
            left_out[f"{name}[{len(own)}:]"] = f"model.max_positions={len(own)}"
        elif name == POSITIONS and len(tensor) < len(own):
            raise UserError(
                f"model.max_positions: {len(own):,} are more than the {len(tensor):,} learned positions of "
                f"{stored.folder} (train.initial). Set model.max_positions={len(tensor)}"
            )
        elif name in EMBEDDINGS and len(tensor) < len(own):
            raise UserError(
                f"{where} has {len(tensor):,} tokens, and the tokenizer {len(own):,}, which names no end of text among "
                "them: tokenizer.end_of_text"
            )
        else:
            left_out[name] = f"its shape is {_shape(tensor)}, and in the new model {_shape(own)}"
    if not weights:
        raise UserError(f"{where}: none of its weights fits the new model. Take the model's settings from there")
    return Initial(weights, left_out, [name for name in state if name not in weights])


def _meaning(config: ModelConfig, name: str) -> Any:
    """A setting's effective value: key_value_heads defaults to num_heads, and what only another kind of positions or
    attention reads is None."""
    kind = getattr(config, "attention", None)
    is_random = kind is Attention.linear and getattr(config, "feature_map", None) is FeatureMap.favor
    if (
        (name in ("window", "global_tokens") and kind is not Attention.window)
        or (name == "feature_map" and kind is not Attention.linear)
        or (name == "random_features" and not is_random)
    ):
        return None
    if name == "key_value_heads":
        return getattr(config, name) or getattr(config, "num_heads", None)
    if name == "rotary_base" and getattr(config, "positions", None) is not Positions.rotary:
        return None
    return getattr(config, name)


def _word(value: Any) -> str:
    return str(getattr(value, "value", "null" if value is None else value)).lower()


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape))
