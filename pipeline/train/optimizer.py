"""Adam on fp32 master weights, the loss scale of fp16, and their state in a checkpoint."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist

from transloom.pipeline.errors import Diverged, UserError
from transloom.pipeline.ranks import rank, world_size
from transloom.pipeline.train.uncompiled import keep_uncompiled, plain_step


class Precision(Enum):
    """The type that the module computes in. The master weights are always fp32.

    `auto` is replaced by the best type for the workers' devices before a run is made.
    """

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


TORCH_DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


@dataclass(frozen=True)
class PrecisionConfig:
    """The compute type; fp16 also needs a loss scale, which halves on overflow and doubles after a window without one.

    Attributes:
        dtype: auto takes bf16 where all workers' devices multiply it, else fp16 on GPUs, else fp32.
        initial_scale_power: the first loss scale of fp16 is 2 to this power.
        scale_window: steps without an overflow after which the loss scale of fp16 doubles.
        min_loss_scale: the loss scale of fp16 goes no lower.

    Raises:
        ValueError: if a number is out of range, naming the field.
    """

    dtype: Precision = Precision.auto
    initial_scale_power: int = 16
    scale_window: int = 1000
    min_loss_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale_window < 1:
            raise ValueError(f"scale_window: must be at least 1, not {self.scale_window}")
        if not 0 < self.min_loss_scale <= 2.0**self.initial_scale_power:
            raise ValueError(f"min_loss_scale: must be above 0 and at most 2**{self.initial_scale_power}")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam (Kingma and Ba 2015) with the paper's numbers (section 5.3); weight decay is decoupled, as in AdamW.

    Attributes:
        beta1: decay of the gradient's mean.
        beta2: decay of the squared gradient's mean.
        eps: added to the root of the squared gradient's mean.
        weight_decay: of matrices only: not of norms, biases and embeddings (see `decay_groups`).
        clip_norm: the largest norm of the whole gradient; 0 turns clipping off.
    """

    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-9
    weight_decay: float = 0.0
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}: must be in [0, 1), not {getattr(self, name)}")
        if self.eps <= 0.0:
            raise ValueError(f"eps: must be above 0, not {self.eps}")
        for name in ("weight_decay", "clip_norm"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"{name}: must be at least 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class GroupSettings:
    """The settings that may differ between parameters.

    lr_scale: factor on the step's learning rate. weight_decay: as in AdamW, a step subtracts the scaled rate ×
    weight_decay × the weight.

    Raises:
        ValueError: if a number makes no sense, naming the field.
    """

    lr_scale: float = 1.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.lr_scale <= 0.0:
            raise ValueError(f"lr_scale: must be above 0, not {self.lr_scale}; a frozen parameter has no gradient")
        if self.weight_decay < 0.0:
            raise ValueError(f"weight_decay: must be at least 0, not {self.weight_decay}")


Groups = Callable[[str, nn.Parameter], GroupSettings]  # by a parameter's name in the module, tied parameters once


def decay_groups(module: nn.Module, weight_decay: float) -> Groups:
    """Weight decay for matrices only: not for parameters of one dimension (norms, biases), nor for embeddings (learned
    positions and a tied output matrix included)."""
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}

    def settings(name: str, parameter: nn.Parameter) -> GroupSettings:
        is_decayed = parameter.ndim > 1 and id(parameter) not in embeddings
        return GroupSettings(weight_decay=weight_decay if is_decayed else 0.0)

    return settings


def trained_groups(module: nn.Module, groups: Groups) -> dict[GroupSettings, dict[str, nn.Parameter]]:
    """The trained parameters, by their settings and their names, in the module's order.

    Raises:
        ValueError: if all parameters are frozen.
    """
    trained: dict[GroupSettings, dict[str, nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            trained.setdefault(groups(name, parameter), {})[name] = parameter
    if not trained:
        raise ValueError("module: all parameters are frozen, nothing is left to train")
    return trained


def adam_group(settings: GroupSettings, parameters: list[Any]) -> dict[str, Any]:
    """A parameter group in the form of torch's optimizers."""
    return {"params": parameters, "weight_decay": settings.weight_decay, "lr_scale": settings.lr_scale}


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets a step's learning rate in all groups, which adam_group has made."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


class StepResult(NamedTuple):
    """grad_norm: of the whole gradient, before clipping; inf when skipped. loss_scale: of this step."""

    grad_norm: float
    skipped: bool
    loss_scale: float


class EngineState(NamedTuple):
    """The state that training resumes from, in one form for every engine and number of ranks.

    tensors: fp32 on the CPU: "weights/<name>", "exp_avg/<name>" and "exp_avg_sq/<name>" of each parameter, tied
    parameters once, frozen parameters only the weights; empty on ranks other than 0. A state without the weights of
    frozen parameters leaves these as the module has them. scalars: JSON values: the number of updates and the loss
    scale's state.
    """

    tensors: dict[str, Tensor]
    scalars: dict[str, Any]


KINDS = ("weights", "exp_avg", "exp_avg_sq")


def without_frozen(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state, of trained parameters alone."""
    trained = {name.removeprefix("exp_avg/") for name in tensors}
    return {name: tensor for name, tensor in tensors.items() if name.partition("/")[2] in trained}


class LossScale:
    """The factor that keeps fp16 gradients in range (Micikevicius et al. 2018, section 3.2); 1 for other types."""

    def __init__(self, config: PrecisionConfig) -> None:
        self.config = config
        self.dynamic = config.dtype is Precision.fp16
        self.value = 2.0**config.initial_scale_power if self.dynamic else 1.0
        self.good_steps = 0

    def update(self, overflowed: bool) -> None:
        if not self.dynamic:
            return
        if overflowed:
            if self.value <= self.config.min_loss_scale:
                raise Diverged(
                    f"fp16 gradients overflow even at the smallest loss scale, {self.config.min_loss_scale:g} "
                    "(precision.min_loss_scale): the training diverges or needs a wider range. "
                    "Use precision.dtype=bf16, or lower the learning rate."
                )
            self.value = max(self.value / 2, self.config.min_loss_scale)
            self.good_steps = 0
        else:
            self.good_steps += 1
            if self.good_steps == self.config.scale_window:
                self.value *= 2
                self.good_steps = 0

    def state(self) -> dict[str, Any]:
        return {"loss_scale": self.value, "good_steps": self.good_steps} if self.dynamic else {}

    def load_state(self, scalars: dict[str, Any]) -> None:
        if self.dynamic and "loss_scale" in scalars:  # missing in a checkpoint of another type
            self.value, self.good_steps = scalars["loss_scale"], scalars["good_steps"]


def adam_arguments(config: OptimizerConfig) -> dict[str, Any]:
    """torch.optim.Adam's arguments besides the groups; the fused kernel makes one pass over memory, also on CPUs."""
    return {
        "lr": 0.0,  # set anew at each step
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "decoupled_weight_decay": True,
        "fused": True,
    }


def create_adam_state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
    """Creates the state that Adam creates lazily at its first step, so that the state can be read and set before."""
    optimizer.state[parameter] = {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


class FrozenWeights:
    """The frozen parameters of a module, which rank 0 keeps in fp32 on the CPU, whatever the compute type.

    To be made before the module is moved to the compute type.

    Attributes:
        shapes: by name.
        tensors: by name; empty on ranks other than 0.
    """

    def __init__(self, module: nn.Module) -> None:
        self._parameters = {name: p for name, p in module.named_parameters() if not p.requires_grad}
        self.shapes = {name: p.shape for name, p in self._parameters.items()}
        self.tensors: dict[str, Tensor] = {}
        if rank() == 0:
            self.tensors = {n: p.detach().to("cpu", torch.float32, copy=True) for n, p in self._parameters.items()}

    @torch.no_grad()
    def load(
        self,
        state: EngineState | None,
        gathered: Callable[[nn.Parameter], AbstractContextManager[Any]] = lambda parameter: nullcontext(),
    ) -> None:
        """All ranks take the weights of rank 0's state, which fits the model, or without a state rank 0's weights.

        Args:
            gathered: a block within which a parameter that the ranks share is whole on each rank.
        """
        for name, parameter in self._parameters.items():
            if rank() == 0 and state is not None and f"weights/{name}" in state.tensors:
                self.tensors[name] = state.tensors[f"weights/{name}"]
            with gathered(parameter):
                if rank() == 0:
                    parameter.data.copy_(self.tensors[name])
                if world_size() > 1:
                    dist.broadcast(parameter.data, 0)


def share_scalars(
    state: EngineState | None, shapes: dict[str, torch.Size], frozen: dict[str, torch.Size]
) -> dict[str, Any] | None:
    """Rank 0's scalars on every rank, after checking that its tensors fit the model; None where rank 0 has no state.

    Args:
        shapes: of the trained parameters. frozen: shapes of the frozen parameters.
    """
    message: list[Any] = [None, None]
    if rank() == 0 and state is not None:
        message = [_misfit(state.tensors, shapes, frozen), state.scalars]
    if world_size() > 1:
        dist.broadcast_object_list(message)
    if message[0] is not None:
        raise UserError(message[0])
    return message[1]


def _misfit(tensors: dict[str, Tensor], shapes: dict[str, torch.Size], frozen: dict[str, torch.Size]) -> str | None:
    expected = {f"{kind}/{name}": shape for kind in KINDS for name, shape in shapes.items()}
    expected |= {f"weights/{name}": shape for name, shape in frozen.items()}
    advice = "Resume with the model's settings that the checkpoint was written with, or start a new run."
    for name in (expected.keys() ^ tensors.keys()) - {f"weights/{name}" for name in frozen}:
        where = "the model but not in the checkpoint" if name in expected else "the checkpoint but not in the model"
        return f"The checkpoint is of another model: {name} is in {where}. {advice}"
    for name, shape in expected.items():
        if name in tensors and tensors[name].shape != shape:
            found, wanted = list(tensors[name].shape), list(shape)
            return f"The checkpoint is of another model: {name} has shape {found}, the model {wanted}. {advice}"
    return None


class MasterAdam(torch.optim.Adam):
    """Adam on fp32 master weights in one flat buffer; gradients and moments have a flat buffer each. Frozen parameters
    are left out. Parameters of the same settings are adjacent, so each group is one slice of the buffers.

    The module's parameters become views: in fp32 of the masters, else of one flat copy of the masters in the compute
    type. So the update, its copy to the compute type, the norm and the reduction are one operation each.
    """

    ALIGNMENT = 64  # elements: every parameter starts on a cache line, in 16 bits too
    CHUNK = 4096  # elements: norms are summed chunk by chunk, exact enough in fp32 and the same for all thread counts

    def __init__(
        self, module: nn.Module, config: OptimizerConfig, loss_scale: LossScale, dtype: torch.dtype, groups: Groups
    ) -> None:
        trained = trained_groups(module, groups)
        self.parameters = [parameter for named in trained.values() for parameter in named.values()]
        device = self.parameters[0].device
        self._slices: dict[str, tuple[int, torch.Size]] = {}
        starts, size = [], 0
        for named in trained.values():
            starts.append(size)
            for name, parameter in named.items():
                self._slices[name] = (size, parameter.shape)
                size += -(-parameter.numel() // self.ALIGNMENT) * self.ALIGNMENT
        size = -(-size // self.CHUNK) * self.CHUNK
        self.masters = torch.zeros(size, dtype=torch.float32, device=device)
        self.gradient = torch.zeros_like(self.masters)
        for parameter, view in zip(self.parameters, self._views(self.masters).values(), strict=True):
            view.copy_(parameter.detach())
        self._copies = self.masters if dtype is torch.float32 else self.masters.to(dtype)
        for parameter, view in zip(self.parameters, self._views(self._copies).values(), strict=True):
            parameter.data = view
        self._gradient_views = list(self._views(self.gradient).values())
        self._accumulating = False
        self._clip_norm = config.clip_norm
        self._loss_scale = loss_scale
        self.result = StepResult(0.0, False, loss_scale.value)
        keep_uncompiled(torch.optim.Adam)
        self._flats = {kind: torch.zeros_like(self.masters) for kind in KINDS[1:]}
        bounds = list(zip(starts, [*starts[1:], size], strict=True))
        self._parts = [self.masters[start:stop] for start, stop in bounds]
        super().__init__(
            [adam_group(settings, [part]) for settings, part in zip(trained, self._parts, strict=True)],
            **adam_arguments(config),
        )
        for part, (start, stop) in zip(self._parts, bounds, strict=True):
            part.grad = self.gradient[start:stop]
            moments = {kind: flat[start:stop] for kind, flat in self._flats.items()}
            self.state[part] = {"step": torch.zeros((), dtype=torch.float32, device=device), **moments}

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        return {n: flat[start : start + shape.numel()].view(shape) for n, (start, shape) in self._slices.items()}

    def flats(self) -> dict[str, Tensor]:
        return {"weights": self.masters, **self._flats}

    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of the trained parameters, by name."""
        return {name: shape for name, (_, shape) in self._slices.items()}

    def updates(self) -> int:
        """The number of updates so far."""
        return int(self.state[self._parts[0]]["step"].item())

    def named(self, kind: str) -> dict[str, Tensor]:
        """Copies on the CPU of one of KINDS, by the parameter's name."""
        return {name: view.to("cpu", copy=True) for name, view in self._views(self.flats()[kind]).items()}

    @torch.no_grad()
    def accumulate(self) -> None:
        """Moves the parameters' gradients into the fp32 buffer: a copy after the step's first backward, then a sum."""
        for parameter, view in zip(self.parameters, self._gradient_views, strict=True):
            if parameter.grad is None:
                if not self._accumulating:
                    view.zero_()
            elif self._accumulating:
                view.add_(parameter.grad)
            else:
                view.copy_(parameter.grad)
            parameter.grad = None
        self._accumulating = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Clips and updates, or skips if the gradient (already summed over the ranks) is not finite; see `result`."""
        self._accumulating = False
        scale = self._loss_scale.value
        chunks = torch.linalg.vector_norm(self.gradient.view(-1, self.CHUNK), dim=1)
        norm = torch.linalg.vector_norm(chunks, dtype=torch.float64).item() / scale
        skipped = not isfinite(norm)
        self.result = StepResult(float("inf") if skipped else norm, skipped, scale)
        if not skipped:
            divisor = scale * max(1.0, (norm + 1e-6) / self._clip_norm) if self._clip_norm else scale
            # The fused kernel divides the gradient while reading it.
            self.grad_scale = None if divisor == 1.0 else torch.tensor(divisor, device=self.masters.device)
            plain_step(self)
            self._refresh_copies()
        self._loss_scale.update(skipped)

    def _refresh_copies(self) -> None:
        if self._copies is not self.masters:
            self._copies.copy_(self.masters)

    @torch.no_grad()
    def load(self, state: EngineState | None, scalars: dict[str, Any] | None) -> None:
        """All ranks take rank 0's state, which fits the model, or without a state rank 0's weights and empty moments.

        Args:
            scalars: of the state, on every rank.
        """
        for kind, flat in self.flats().items():
            if rank() == 0 and state is not None:
                for name, view in self._views(flat).items():
                    view.copy_(state.tensors[f"{kind}/{name}"])
            if world_size() > 1:
                dist.broadcast(flat, 0)
        self._refresh_copies()
        if scalars is not None:
            for part in self._parts:
                self.state[part]["step"].fill_(scalars["adam_step"])
            self._loss_scale.load_state(scalars)
