"""A small module with what the engines must cope with: a tied embedding used outside its own submodule, an fp32 loss,
sizes that no number of ranks divides."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from transloom.model.losses import LossSum
from transloom.pipeline.train.engine import Engine
from transloom.pipeline.train.optimizer import GroupSettings, StepResult

VOCABULARY = 1703  # the embedding has more than the 100 000 elements under which ZeRO 3 shares nothing out
WIDTH = 61
MICRO_BATCHES = 6  # in a step, over all ranks


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.gain = nn.Parameter(torch.ones(7))
        nn.init.normal_(self.embedding.weight, std=WIDTH**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T) -> (B, T, WIDTH)
        return self.norm(torch.tanh(self.hidden(self.embedding(tokens)))) * self.gain.mean()


class Objective(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Toy()

    def forward(self, batch: tuple[Tensor, Tensor]) -> LossSum:
        tokens, labels = batch
        logits = functional.linear(self.model(tokens), self.model.embedding.weight).float()
        total = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return LossSum(total, labels.numel())


def make_objective(seed: int = 0) -> Objective:
    torch.manual_seed(seed)
    return Objective()


FROZEN = ("model.embedding.weight", "model.norm.bias")


def freeze(module: Objective) -> None:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in FROZEN)


def slower_below(name: str, parameter: nn.Parameter) -> GroupSettings:
    """Half of the rate for the hidden layer, a quarter for the gain: a group that is too small for three ranks."""
    return GroupSettings(lr_scale=rate_factor(name))


def rate_factor(name: str) -> float:
    return {"hidden": 0.5, "gain": 0.25}.get(name.split(".")[1], 1.0)


def make_batch(step: int, index: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1000 * step + index)
    shape = (2, 3 + (step + index) % 4)
    return (
        torch.randint(VOCABULARY, shape, generator=random),
        torch.randint(VOCABULARY, shape, generator=random),
    )


def take_steps(engine: Engine, first: int, last: int, rank: int = 0, world_size: int = 1) -> list[StepResult]:
    """Steps first to last - 1, of which rank takes every world_size-th micro-batch."""
    results = []
    for step in range(first, last):
        batches = [make_batch(step, index) for index in range(MICRO_BATCHES)]
        tokens = sum(labels.numel() for _, labels in batches)
        mine = batches[rank::world_size]
        for index, batch in enumerate(mine):
            engine.forward_backward(batch, scale=1.0 / tokens, last=index == len(mine) - 1)
        results.append(engine.step(0.003))
    return results
