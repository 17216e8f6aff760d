"""The engine protocol on plain torch: the reference for DeepSpeed's correctness and cost, and its replacement."""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from transloom.model.losses import LossSum
from transloom.pipeline.ranks import rank, world_size
from transloom.pipeline.train.optimizer import (
    KINDS,
    TORCH_DTYPES,
    EngineState,
    FrozenWeights,
    Groups,
    LossScale,
    MasterAdam,
    OptimizerConfig,
    PrecisionConfig,
    StepResult,
    set_learning_rate,
    share_scalars,
)


class TorchEngine:
    """Plain torch: every rank holds everything; one all-reduce of the flat fp32 gradient a step."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig,
        precision: PrecisionConfig,
        device: torch.device,
        groups: Groups,
    ) -> None:
        self.device = device
        self._module = module
        self._loss_scale = LossScale(precision)
        dtype = TORCH_DTYPES[precision.dtype]
        self._frozen = FrozenWeights(module)
        self._optimizer = MasterAdam(module, optimizer, self._loss_scale, dtype, groups)
        module.to(dtype)  # buffers and frozen parameters; the others already are

    def forward_backward(self, batch: Any, *, scale: float, last: bool) -> LossSum:
        loss: LossSum = self._module(batch)
        (loss.total * (scale * self._loss_scale.value)).backward()
        self._optimizer.accumulate()
        return LossSum(loss.total.detach(), loss.num_tokens)

    def recover(self) -> bool:
        for parameter in self._optimizer.parameters:  # the sum over earlier micro-batches is in another buffer
            parameter.grad = None
        return True

    def step(self, learning_rate: float) -> StepResult:
        if world_size() > 1:
            dist.all_reduce(self._optimizer.gradient)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        return self._optimizer.result

    def weights(self) -> dict[str, Tensor]:
        return {**self._optimizer.named("weights"), **self._frozen.tensors} if rank() == 0 else {}

    def state(self) -> EngineState:
        scalars = {"adam_step": self._optimizer.updates(), **self._loss_scale.state()}
        if rank() != 0:
            return EngineState({}, scalars)
        tensors = {f"{kind}/{name}": t for kind in KINDS for name, t in self._optimizer.named(kind).items()}
        tensors |= {f"weights/{name}": t for name, t in self._frozen.tensors.items()}
        return EngineState(tensors, scalars)

    def load_state(self, state: EngineState | None) -> None:
        scalars = share_scalars(state, self._optimizer.shapes(), self._frozen.shapes)
        self._optimizer.load(state, scalars)
        self._frozen.load(state)
