"""Measures the steps between two reports: loss, speed, padding."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from transloom.pipeline.data.batches import Step
from transloom.pipeline.ranks import gather, rank, world_size

SUMS = ("seconds", "steps", "tokens", "loss_count", "padding")


class Meter:
    """Counts tokens without padding, and time without validation and checkpoints.

    Args:
        flops: tokens by column to the operations of training on them.
        counted: `state()` from a checkpoint that was saved between two reports; the next report includes it.
    Attributes:
        gradient_norm: of the last step.
        seconds_per_step: since the last report.
    """

    def __init__(
        self,
        device: torch.device,
        flops: Callable[[Mapping[str, int]], float],
        counted: Mapping[str, Any] | None = None,
    ) -> None:
        self.device, self._flops = device, flops
        self.gradient_norm = math.nan
        self._clear()
        if counted:
            for name in SUMS:
                setattr(self, name, counted[name])
            self.tokens = dict(self.tokens)
            losses = counted["losses"]
            # Each rank resumes its own sum: a sum in another order would not be equal bit for bit.
            self.loss += losses[rank()] if len(losses) == world_size() else sum(losses) / world_size()

    def state(self) -> dict[str, Any]:
        """The sums since the last report, for `counted`; a collective."""
        sums = {name: getattr(self, name) for name in SUMS}
        return {**sums, "tokens": dict(self.tokens), "losses": gather(float(self.loss))}

    def _clear(self) -> None:
        self.seconds, self.steps = 0.0, 0
        self.tokens: dict[str, int] = {}
        self.loss_count, self.padding = 0, 0.0
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)

    def start(self) -> None:
        """Starts the clock of a step, before its batches are made."""
        self.started_at = time.monotonic()

    def add_loss(self, total: Tensor) -> None:
        """Adds a step's summed loss."""
        self.loss += total  # stays on the device: reading it here would wait for the step

    def stop(self, step: Step) -> float:
        """Counts the finished step; returns its seconds."""
        elapsed = time.monotonic() - self.started_at
        self.seconds += elapsed
        self.steps += 1
        for column, count in step.tokens.items():
            self.tokens[column] = self.tokens.get(column, 0) + count
        self.loss_count += step.loss_count
        self.padding += sum(one.padding_share for one in step.batches) / len(step.batches)
        self.seconds_per_step = self.seconds / self.steps
        return elapsed

    def take(self) -> dict[str, float]:
        """The metrics since the last call, tokens and loss over all ranks; a collective."""
        if world_size() > 1:
            dist.all_reduce(self.loss)
        metrics = {
            "loss": float(self.loss) / self.loss_count,
            "grad_norm": self.gradient_norm,
            **{f"{column}_tokens_per_second": count / self.seconds for column, count in self.tokens.items()},
            "padding_share": self.padding / self.steps,
            "model_flops_per_second": self._flops(self.tokens) / self.seconds,
        }
        self._clear()
        return metrics
