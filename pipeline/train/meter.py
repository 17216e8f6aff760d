"""Measures the steps between two reports: loss, speed, padding."""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from model.build import Model
from model.flops import training_flops
from pipeline.data.batches import Step
from pipeline.ranks import gather, rank, world_size

SUMS = ("seconds", "steps", "source_tokens", "target_tokens", "padding")


class Meter:
    """Counts tokens without padding, and time without validation and checkpoints.

    Args:
        counted: what `state` said when a checkpoint was saved between two reports; the next one covers it, too.
    Attributes:
        gradient_norm: of the last step.
        seconds_per_step: since the last report.
    """

    def __init__(self, model: Model, device: torch.device, counted: Mapping[str, Any] | None = None) -> None:
        self.model, self.device = model, device
        self.gradient_norm = math.nan
        self._clear()
        if counted:
            for name in SUMS:
                setattr(self, name, counted[name])
            losses = counted["losses"]
            # A rank goes on with its own: a sum in another order is not the same to the bit.
            self.loss += losses[rank()] if len(losses) == world_size() else sum(losses) / world_size()

    def state(self) -> dict[str, Any]:
        """The sums since the last report, for `counted`; a collective."""
        return {**{name: getattr(self, name) for name in SUMS}, "losses": gather(float(self.loss))}

    def _clear(self) -> None:
        self.seconds, self.steps = 0.0, 0
        self.source_tokens, self.target_tokens, self.padding = 0, 0, 0.0
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)

    def start(self) -> None:
        """A step begins, with the making of its batches."""
        self.started_at = time.monotonic()

    def add_loss(self, total: Tensor) -> None:
        """Adds a step's summed loss."""
        self.loss += total  # stays on the device: reading it here would wait for the step

    def stop(self, step: Step) -> float:
        """The step has ended; returns its seconds."""
        elapsed = time.monotonic() - self.started_at
        self.seconds += elapsed
        self.steps += 1
        self.source_tokens += step.source_tokens
        self.target_tokens += step.target_tokens
        self.padding += sum(one.padding_share for one in step.batches) / len(step.batches)
        self.seconds_per_step = self.seconds / self.steps
        return elapsed

    def take(self) -> dict[str, float]:
        """The metrics since the last call, tokens and loss over all ranks; a collective."""
        if world_size() > 1:
            dist.all_reduce(self.loss)
        flops = training_flops(self.model.config, self.model.vocab_size, self.source_tokens, self.target_tokens)
        metrics = {
            "loss": float(self.loss) / self.target_tokens,
            "grad_norm": self.gradient_norm,
            "source_tokens_per_second": self.source_tokens / self.seconds,
            "target_tokens_per_second": self.target_tokens / self.seconds,
            "padding_share": self.padding / self.steps,
            "model_flops_per_second": flops / self.seconds,
        }
        self._clear()
        return metrics
