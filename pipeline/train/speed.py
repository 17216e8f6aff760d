"""The speed of training steps on sentences of equal length: the cost of recurrence and attention by length."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import cast

import numpy as np
import torch

from transloom.model.build import ModelConfig, build_model
from transloom.pipeline.data.pairs import collate_pairs
from transloom.pipeline.data.tokenizer import EOS_ID
from transloom.pipeline.tasks.task import Examples
from transloom.pipeline.train.engine import EngineConfig, EngineName, make_engine
from transloom.pipeline.train.objective import TranslationObjective
from transloom.pipeline.train.optimizer import OptimizerConfig, PrecisionConfig

WARM_UP, ROUNDS = 2, 7


@dataclass(frozen=True)
class SameLength:
    """Pairs of random words, all of `length` tokens with </s>."""

    length: int
    vocab_size: int

    def get(self, column: str, row: int) -> np.ndarray:
        """(length,) ids, the same for both columns."""
        words = np.random.default_rng(row).integers(EOS_ID + 1, self.vocab_size, self.length - 1)
        return np.append(words, EOS_ID)


def speed_by_length(
    models: Mapping[str, ModelConfig],
    lengths: Sequence[int],
    *,
    tokens: int,
    vocab_size: int,
    precision: PrecisionConfig,
    device: torch.device,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, list[float]]:
    """Median target tokens per second of whole training steps, for each length, with as many source tokens. One worker
    runs the plain torch engine, and the models take turns.

    Args:
        lengths: tokens of each sentence, on both sides.
        tokens: of a step, on each side, in one micro-batch; rounded down to whole sentences.
    """
    engines = {}
    for name, config in models.items():
        objective = TranslationObjective(build_model(config, vocab_size), label_smoothing=0.1).train()
        engines[name] = make_engine(
            objective, OptimizerConfig(), precision, EngineConfig(name=EngineName.torch), device
        )
    speeds: dict[str, list[float]] = {name: [] for name in models}
    for done, length in enumerate(lengths):
        progress("measuring speed by sentence length", done, len(lengths))
        count = max(1, tokens // length)
        batch = collate_pairs(cast(Examples, SameLength(length, vocab_size)), range(count)).to(device)
        found: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(WARM_UP + ROUNDS):
            for name, engine in engines.items():
                _wait_for(device)
                started_at = time.perf_counter()
                engine.forward_backward(batch, scale=1.0 / (count * length), last=True)
                engine.step(1e-6)
                _wait_for(device)
                found[name].append(count * length / (time.perf_counter() - started_at))
        for name, values in found.items():
            speeds[name].append(median(values[WARM_UP:]))
    return speeds


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
