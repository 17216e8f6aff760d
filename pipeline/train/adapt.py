"""Which weights of an initial model a training changes, and at which rates.

A layer's depth is its number in its stack, from 0: of an encoder and a decoder each counts its own.
"""

import re
from collections.abc import Collection

from torch import nn

from transloom.model.lora import add_adapters
from transloom.pipeline.errors import UserError
from transloom.pipeline.train.optimizer import Groups, GroupSettings, decay_groups
from transloom.pipeline.train.session import TrainConfig

_LAYER = re.compile(r"(?:^|\.)(layers|encoder|decoder)\.(\d+)\.")
# A tied output projection is the embedding.
_EMBEDDING = re.compile(r"(?:^|\.)(embedding|source_embedding|learned_positions)\.weight$")


def adapt(model: nn.Module, config: TrainConfig, initial: Collection[str]) -> None:
    """Freezes what `train.frozen_layers` or `train.lora` leave as it was, and adds the adapters, in place.

    Args:
        initial: names of the weights that the model has taken from another model. The other weights are random: with
            adapters they are trained whole.
    Raises:
        UserError: random weights would be frozen, nothing is left to train, or the model has no layers for adapters.
    """
    for name, parameter in model.named_parameters():
        if is_below(name, config.frozen_layers):
            parameter.requires_grad_(False)
            if name not in initial:
                raise UserError(
                    f"train.frozen_layers: {config.frozen_layers} would freeze {name}, which the initial model lacks "
                    "and which begins with random numbers. Freeze fewer layers, or none"
                )
        elif config.lora.rank:
            parameter.requires_grad_(name not in initial)
    if config.lora.rank and not add_adapters(model, config.lora):
        raise UserError("train.lora.rank: the model has no attention or feed-forward layers that adapters are made for")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"train.frozen_layers: with {config.frozen_layers} nothing is left to train. Freeze fewer layers"
        )


def is_below(name: str, layers: int) -> bool:
    """Whether a parameter belongs to the embeddings or to the first `layers` layers of a stack. False for 0 layers."""
    layer = _LAYER.search(name)
    return layers > 0 and (int(layer[2]) < layers if layer else bool(_EMBEDDING.search(name)))


def depths_from_the_top(names: Collection[str]) -> dict[str, int]:
    """By a parameter's name, the number of layers of its stack above it: 0 for the top layer and all that stands behind
    the layers; for embeddings the layers of the highest stack."""
    layers = {name: (layer[1], int(layer[2])) for name in names if (layer := _LAYER.search(name))}
    heights: dict[str, int] = {}
    for stack, number in layers.values():
        heights[stack] = max(heights.get(stack, 0), number + 1)
    depths = {name: heights[stack] - 1 - number for name, (stack, number) in layers.items()}
    lowest = max(heights.values(), default=0)
    return {name: depths.get(name, lowest if _EMBEDDING.search(name) else 0) for name in names}


def adapted_groups(module: nn.Module, weight_decay: float, layer_decay: float) -> Groups:
    """`decay_groups` with the learning rate of each parameter times layer_decay^(its depth from the top)."""
    plain = decay_groups(module, weight_decay)
    depths = depths_from_the_top([name for name, _ in module.named_parameters()])

    def settings(name: str, parameter: nn.Parameter) -> GroupSettings:
        return GroupSettings(layer_decay ** depths[name], plain(name, parameter).weight_decay)

    return settings


def count_trained(model: nn.Module) -> tuple[int, int]:
    """The numbers of trained and of all parameters, adapters included."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, is_trained in counts if is_trained), sum(count for count, _ in counts)
