"""DeepSpeed's ZeRO stages beside plain torch, and the loss scale of fp16."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from transloom.model.transformer import Transformer
from transloom.pipeline.data.batches import Step, ahead
from transloom.pipeline.data.pairs import open_pairs, pair_steps
from transloom.pipeline.gpu_check.outcome import Outcome, Target
from transloom.pipeline.gpu_check.random_corpus import write_random_shards
from transloom.pipeline.gpu_check.settings import EngineSize
from transloom.pipeline.train.engine import (
    Engine,
    EngineConfig,
    EngineName,
    OptimizerConfig,
    PrecisionConfig,
    make_engine,
)
from transloom.pipeline.train.loop import add_gradients
from transloom.pipeline.train.objective import TranslationObjective
from transloom.pipeline.train.optimizer import Precision, StepResult

SEED = 1
# How far DeepSpeed may be from plain torch in bf16. The way that the weights have gone differs most: Adam's steps are
# as large for a gradient that is mere rounding, as that of the keys' biases is, as for any other.
LOSS, NORM, WAY = 1e-2, 3e-2, 0.15
OPTIMIZER = OptimizerConfig(clip_norm=1.0)
OVERFLOW = 1e30  # times the loss: more than fp16 holds


@dataclass(frozen=True)
class Way:
    """What a few updates did.

    Attributes:
        losses: nats per target token, before each update. norms: of the gradients.
        moved: by name, the change of the fp32 masters.
    """

    losses: list[float]
    norms: list[float]
    moved: dict[str, Tensor]


def check_zero(stage: int, size: EngineSize, device: torch.device, folder: Path) -> Outcome:
    """The same updates in bf16 by plain torch and by a stage of ZeRO, one rank each."""
    step = _one_step(size, device, folder)
    plain = _train(_engine(EngineConfig(EngineName.torch), Precision.bf16, size, device), step, size)
    zero = _train(_engine(EngineConfig(EngineName.deepspeed, stage), Precision.bf16, size, device), step, size)
    loss = max(abs(a - b) / abs(b) for a, b in zip(zero.losses, plain.losses, strict=True))
    norm = max(abs(a - b) / abs(b) for a, b in zip(zero.norms, plain.norms, strict=True))
    way = _apart(zero.moved, plain.moved)
    figures = {
        "losses": {"torch": plain.losses, "deepspeed": zero.losses},
        "gradient_norms": {"torch": plain.norms, "deepspeed": zero.norms},
        "distance_of_weights": way,
    }
    targets = [
        Target("distance of losses", loss, LOSS, at_least=False),
        Target("distance of gradients' norms", norm, NORM, at_least=False),
        Target("distance of what the weights have moved", way, WAY, at_least=False),
        Target("last loss / first", zero.losses[-1] / zero.losses[0], 0.99, at_least=False),
    ]
    summary = f"{size.updates} updates as plain torch's: losses {loss:.2%} apart, gradients' norms {norm:.2%}"
    return Outcome(f"{summary}, weights {way:.1%} of their way", figures, targets)


def check_loss_scale(size: EngineSize, device: torch.device, folder: Path) -> Outcome:
    """An overflow halves the scale and leaves the weights as they were; then fp16 trains."""
    step = _one_step(size, device, folder)
    engine = _engine(EngineConfig(EngineName.torch), Precision.fp16, size, device)
    before = engine.weights()
    for index, batch in enumerate(step.batches):
        is_last = index == len(step.batches) - 1
        engine.forward_backward(batch, scale=OVERFLOW if is_last else 1.0 / step.loss_count, last=is_last)
    overflow = engine.step(size.learning_rate)
    after = engine.weights()
    num_changed = sum(not torch.equal(after[name], weight) for name, weight in before.items())
    losses, results = _updates(engine, step, size)
    scales = [one.loss_scale for one in (overflow, *results)]
    num_taken = sum(not one.skipped for one in results)
    figures = {"loss_scales": scales, "losses": losses, "updates": num_taken, "changed_by_overflow": num_changed}
    targets = [
        Target("the update that overflowed was skipped", float(overflow.skipped), 1.0),
        Target("tensors that it changed", float(num_changed), 0.0, at_least=False),
        Target("loss scale after / before", scales[1] / scales[0], 0.5, at_least=False),
        Target("share of the updates taken afterwards", num_taken / size.updates, 0.5),
        Target("last loss / first", losses[-1] / losses[0], 0.99, at_least=False),
    ]
    summary = f"scale {scales[0]:g} halved to {scales[1]:g} by an overflow, {num_changed} tensors changed by it"
    return Outcome(f"{summary}; then {num_taken} updates, loss {losses[0]:.2f} to {losses[-1]:.2f}", figures, targets)


def _one_step(size: EngineSize, device: torch.device, folder: Path) -> Step:
    shards = folder / f"random-{size.batch.tokens}-{size.vocab_size}"
    write_random_shards(shards, max(100, size.batch.tokens // 10), size.vocab_size, SEED)
    steps = pair_steps(open_pairs(shards, "train"), size.batch, SEED, rank=0, world_size=1)
    return next(islice(ahead(steps, device), 1))


def _engine(config: EngineConfig, precision: Precision, size: EngineSize, device: torch.device) -> Engine:
    torch.manual_seed(SEED)
    objective = TranslationObjective(Transformer(size.model, size.vocab_size), label_smoothing=0.1).train()
    return make_engine(objective, OPTIMIZER, PrecisionConfig(precision), config, device)


def _updates(engine: Engine, step: Step, size: EngineSize) -> tuple[list[float], list[StepResult]]:
    """Updates on the same micro-batches, so that the loss of random tokens falls too."""
    losses, results = [], []
    for _ in range(size.updates):
        losses.append(float(add_gradients(engine, step).sum()) / step.loss_count)
        results.append(engine.step(size.learning_rate))
    return losses, results


def _train(engine: Engine, step: Step, size: EngineSize) -> Way:
    before = engine.weights()
    losses, results = _updates(engine, step, size)
    after = engine.weights()
    return Way(losses, [one.grad_norm for one in results], {name: after[name] - before[name] for name in before})


def _apart(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    """The norm of the difference, relative to the others' norm."""
    difference = math.sqrt(sum(float((some[name] - others[name]).double().square().sum()) for name in others))
    return difference / math.sqrt(sum(float(one.double().square().sum()) for one in others.values()))
