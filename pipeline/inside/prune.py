"""Heads taken out of a trained model, one after the other: which ones the model needs (Voita et al. 2019; Michel et al.
2019)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from transloom.pipeline.attention_maps import attentions
from transloom.pipeline.errors import UserError
from transloom.pipeline.inside.examples import Sample, loss_of, plain_objective
from transloom.pipeline.progress import Progress, no_progress

CANDIDATES = 4  # heads whose loss is computed before one of them goes


class Head(NamedTuple):
    """A head: its stack's name, and its layer and number from 1."""

    stack: str
    layer: int
    number: int

    def __str__(self) -> str:
        return f"{self.stack} {self.layer}.{self.number}"


@dataclass(frozen=True)
class Pruned:
    """A model with some heads taken out.

    Attributes:
        left: the number of heads that are left. head: the head that went last; None: all are there.
        loss: in nats, on the sample. scores: of the whole validation set; empty where it was not evaluated.
    """

    left: int
    head: Head | None
    loss: float
    scores: dict[str, float]


def heads_of(model: Any, stack: str | None = None) -> list[Head]:
    """All heads of a model, or those of a stack.

    Raises:
        UserError: there is no such stack, or no attention.
    """
    stacks = attentions(model)
    if not stacks:
        raise UserError("the model has no heads of attention: it is recurrent")
    if stack is not None and stack not in stacks:
        raise UserError(f"stack={stack}: the model has {', '.join(stacks)}")
    return [
        Head(name, layer, number)
        for name, layers in stacks.items()
        if stack in (None, name)
        for layer, attention in enumerate(layers, 1)
        for number in range(1, attention.num_heads + 1)
    ]


@contextmanager
def without(model: Any, heads: Sequence[Head]) -> Iterator[None]:
    """A block in which these heads write zeros."""
    columns = [_columns(_output(model, head).detach(), model, head) for head in heads]
    kept = [part.clone() for part in columns]
    try:
        for part in columns:
            part.zero_()
        yield
    finally:
        for part, before in zip(columns, kept, strict=True):
            part.copy_(before)


def prune(
    model: Any,
    sample: Sample,
    heads: Sequence[Head],
    points: int,
    validate: Callable[[Any], dict[str, float]],
    progress: Progress = no_progress,
) -> Iterator[Pruned]:
    """Takes out the head whose absence costs least, then of the others again, until none of `heads` is left. Yields
    the model with all heads first. The model has all heads again afterwards.

    The loss without a head is computed of the CANDIDATES whose first-order estimate is lowest, d loss / d mask (Michel
    et al. 2019, equation 2); of fewer heads of all.

    Args:
        points: about as many of the results have scores, the first and the last among them.
        validate: the model's scores.
    """
    objective, device = plain_objective(sample.task, model), model.embedding.weight.device
    batches = [batch.to(device) for batch, _ in sample.batches()]
    every = max(1, round(len(heads) / max(1, points - 1)))
    gone: list[Head] = []
    yield Pruned(len(heads), None, loss_of(objective, batches), validate(model))
    while len(gone) < len(heads):
        left = [head for head in heads if head not in gone]
        losses = {}
        with without(model, gone):
            candidates = left if len(left) <= CANDIDATES else _cheapest(model, objective, batches, left)
            for head in candidates:
                with without(model, [head]):
                    losses[head] = loss_of(objective, batches)
        best = min(candidates, key=losses.__getitem__)
        gone.append(best)
        is_point = len(gone) % every == 0 or len(gone) == len(heads)
        with without(model, gone):
            scores = validate(model) if is_point else {}
        yield Pruned(len(heads) - len(gone), best, losses[best], scores)
        progress("taking out heads", len(gone), len(heads))


def _cheapest(model: Any, objective: Any, batches: Sequence[Any], heads: Sequence[Head]) -> list[Head]:
    """The heads whose absence changes the loss least, as its gradient has it."""
    estimates = dict.fromkeys(heads, 0.0)
    for batch in batches:
        model.zero_grad()
        objective(batch).total.backward()
        for head in heads:
            weight = _output(model, head)
            assert weight.grad is not None
            estimates[head] -= float(
                (_columns(weight.grad, model, head) * _columns(weight.detach(), model, head)).sum()
            )
    model.zero_grad()
    return sorted(heads, key=estimates.__getitem__)[:CANDIDATES]


def _output(model: Any, head: Head) -> Tensor:
    """The output projection of a head's attention, through which goes all that the head writes: (d_model, H * V)"""
    weight: Any = attentions(model)[head.stack][head.layer - 1].output.weight
    return weight


def _columns(weight: Tensor, model: Any, head: Head) -> Tensor:
    """A head's part of the projection, (d_model, V)"""
    width = weight.shape[1] // attentions(model)[head.stack][head.layer - 1].num_heads
    return weight[:, (head.number - 1) * width : head.number * width]


def parse_heads(text: str, model: Any) -> list[Head]:
    """Heads as the command line names them: 2.1,2.3, or with a stack's name encoder.2.1.

    Raises:
        UserError: a name is none of a head of the model.
    """
    known = heads_of(model)
    stacks = list(dict.fromkeys(head.stack for head in known))
    heads = []
    for name in text.split(","):
        parts = name.strip().split(".")
        stack, places = (parts[0], parts[1:]) if len(parts) == 3 else (stacks[0] if len(stacks) == 1 else "", parts)
        matching = [head for head in known if [head.stack, str(head.layer), str(head.number)] == [stack, *places]]
        if not matching:
            raise UserError(
                f"without={name}: is no head of the model; name layer and head from 1, as in 2.1, of a model with "
                f"several stacks encoder.2.1; there are {', '.join(map(str, known[:3]))}, … {known[-1]}"
            )
        heads += matching
    return heads
