"""One training step behind a small protocol: plain torch in `torch_engine.py`, DeepSpeed in `deepspeed.py`.

The module's parameters are in the compute type (bf16, fp16 or fp32); the trained weights are fp32 masters, updated by
Adam. Gradients accumulate and are reduced in fp32. The reduction is a sum: the caller has already divided by what
the step counts over all ranks (`Step.loss_count`), so the numbers of ranks and of micro-batches do not matter.
"""

import os
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from transloom.model.losses import LossSum
from transloom.pipeline.train.optimizer import (
    EngineState,
    Groups,
    OptimizerConfig,
    PrecisionConfig,
    StepResult,
    decay_groups,
)
from transloom.pipeline.train.torch_engine import TorchEngine


class EngineName(Enum):
    torch = "torch"
    deepspeed = "deepspeed"


@dataclass(frozen=True)
class EngineConfig:
    """The engine that takes the steps.

    Attributes:
        name: DeepSpeed, or plain PyTorch without it.
        zero_stage: DeepSpeed's ZeRO stage, 0 to 3; plain torch ignores it.
    """

    name: EngineName = EngineName.deepspeed
    zero_stage: int = 1

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage: must be 0, 1, 2 or 3, not {self.zero_stage}")


class Engine(Protocol):
    """Takes training steps on one rank's share of the micro-batches.

    Every method but `recover` is a collective that all ranks call, forward_backward too (under ZeRO 2 and 3 it
    reduces). Under ZeRO every micro-batch must use every trained parameter: DeepSpeed reduces only parameters with a
    gradient, and waits for ever where ranks disagree. The module's buffers are constants of the model and are not
    saved.
    """

    device: torch.device

    def forward_backward(self, batch: Any, *, scale: float, last: bool) -> LossSum:
        """Adds the gradient of scale × the micro-batch's summed loss.

        Every rank makes the same number of calls per step; `last` marks the step's last one. The returned total is
        detached and on `device`.
        """
        ...

    def recover(self) -> bool:
        """Drops the partial gradients of a forward_backward that ran out of memory; on that rank alone.

        Returns:
            whether the engine's state is that from before the call, and the rank may make more calls than the others.
        """
        ...

    def step(self, learning_rate: float) -> StepResult:
        """Sums the gradients over the ranks, clips, updates; NaN or inf anywhere skips the update on every rank.

        Raises:
            UserError: when fp16 gradients overflow at the smallest loss scale.
        """
        ...

    def weights(self) -> dict[str, Tensor]:
        """The fp32 master weights on the CPU of rank 0, the only writer; names as in the module's state_dict, tied
        weights once. The other ranks get an empty dict and keep no copy."""
        ...

    def state(self) -> EngineState: ...

    def load_state(self, state: EngineState | None) -> None:
        """Goes on from rank 0's `state`; the other ranks' argument is ignored.

        Raises:
            UserError: on every rank, if the state is of another model.
        """
        ...


def make_engine(
    module: nn.Module,
    optimizer_config: OptimizerConfig,
    precision_config: PrecisionConfig,
    engine_config: EngineConfig,
    device: torch.device,
    state: EngineState | None = None,
    groups: Groups | None = None,
) -> Engine:
    """The engine that trains `module`, whose forward(batch) returns a LossSum; a collective.

    Uses torch.distributed's default group, if any. All ranks start from rank 0's `state` or, if None, from rank 0's
    weights. The module is moved to `device` and to the compute type. Validation may call the module directly, under
    ZeRO 3 on all ranks alike. Parameters without requires_grad, now and ever after, are frozen: they have weights in
    `weights()` and the state, but no moments.

    Args:
        groups: the settings of each trained parameter, in place of the optimizer's weight_decay; the same on every
            rank. None: decay_groups.
    Raises:
        ValueError: if all parameters are frozen.
        UserError: if `state` is of another model.
    """
    module.to(device)
    groups = groups or decay_groups(module, optimizer_config.weight_decay)
    if engine_config.name is EngineName.deepspeed:
        os.environ.setdefault("DS_ACCELERATOR", device.type)  # read when deepspeed is imported
        from transloom.pipeline.train.deepspeed import make_deepspeed_engine  # takes seconds

        return make_deepspeed_engine(
            module, optimizer_config, precision_config, engine_config.zero_stage, device, state, groups
        )
    engine = TorchEngine(module, optimizer_config, precision_config, device, groups)
    engine.load_state(state)
    return engine
