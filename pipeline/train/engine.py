"""One training step behind a small protocol: plain torch in `torch_engine.py`, DeepSpeed in `deepspeed.py`.

The module's parameters live in the compute type (bf16, fp16 or fp32); the weights that are trained are fp32 masters,
updated by Adam. Gradients accumulate and are reduced in fp32. The reduction is a sum: whoever calls has already divided
by the step's number of target tokens over all ranks, so neither the number of ranks nor that of micro-batches matters.
"""

import os
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model.losses import LossSum
from pipeline.train.optimizer import EngineState, Groups, OptimizerConfig, PrecisionConfig, StepResult, decay_groups
from pipeline.train.torch_engine import TorchEngine


class EngineName(Enum):
    torch = "torch"
    deepspeed = "deepspeed"


@dataclass(frozen=True)
class EngineConfig:
    """Which engine takes the steps; zero_stage is DeepSpeed's ZeRO stage and means nothing to plain torch."""

    name: EngineName = EngineName.deepspeed
    zero_stage: int = 1

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage: must be 0, 1, 2 or 3, not {self.zero_stage}")


class Engine(Protocol):
    """Takes training steps on one rank's share of the micro-batches.

    Every method is a collective: all ranks call it, forward_backward too (under ZeRO 2 and 3 it reduces). Under ZeRO
    every micro-batch must use every parameter that is trained: DeepSpeed reduces those alone that got a gradient, and
    waits for ever where ranks disagree. The buffers of the module are constants of the model: not saved.
    """

    device: torch.device

    def forward_backward(self, batch: Any, *, scale: float, last: bool) -> LossSum:
        """Add the gradient of scale × the micro-batch's summed loss.

        Every rank makes the same number of calls per step; `last` marks the step's last one. The returned total is
        detached and on `device`.
        """
        ...

    def recover(self) -> bool:
        """Drop what a forward_backward that raised for want of memory has left; on that rank alone.

        Returns:
            whether the engine is as it was before that call, and the rank may make more calls than the others.
        """
        ...

    def step(self, learning_rate: float) -> StepResult:
        """Sum the gradients over the ranks, clip, update; NaN or inf anywhere skips the update on every rank.

        Raises:
            UserError: when fp16 gradients overflow at the smallest loss scale.
        """
        ...

    def weights(self) -> dict[str, Tensor]:
        """The fp32 master weights on the CPU of rank 0, which alone writes them; names as in the module's state_dict,
        tied ones once. The other ranks get an empty dict and keep no copy."""
        ...

    def state(self) -> EngineState: ...

    def load_state(self, state: EngineState | None) -> None:
        """Go on from rank 0's `state`; what other ranks pass is not looked at.

        Raises:
            UserError: on every rank, if the state is of another model.
        """
        ...


def make_engine(
    module: nn.Module,
    optimizer: OptimizerConfig,
    precision: PrecisionConfig,
    engine: EngineConfig,
    device: torch.device,
    initial: EngineState | None = None,
    groups: Groups | None = None,
) -> Engine:
    """The engine that trains `module`, whose forward(batch) returns a LossSum; a collective.

    Uses torch.distributed's default group where there is one. All ranks start from rank 0's `initial` or, without one,
    from rank 0's weights. The module is moved to `device` and to the compute type; it may be called directly for
    validation, under ZeRO 3 by all ranks alike. Parameters without requires_grad, now and ever after, are frozen: they
    have weights in `weights()` and the state, but no moments.

    Args:
        groups: the settings of each parameter that is trained, in place of the optimizer's weight_decay; the same on
            every rank. None: decay_groups.
    Raises:
        ValueError: if all parameters are frozen.
        UserError: if `initial` is of another model.
    """
    module.to(device)
    groups = groups or decay_groups(module, optimizer.weight_decay)
    if engine.name is EngineName.deepspeed:
        os.environ.setdefault("DS_ACCELERATOR", device.type)  # read when deepspeed is imported
        from pipeline.train.deepspeed import make_deepspeed_engine  # takes seconds

        return make_deepspeed_engine(module, optimizer, precision, engine.zero_stage, device, initial, groups)
    torch_engine = TorchEngine(module, optimizer, precision, device, groups)
    torch_engine.load_state(initial)
    return torch_engine
