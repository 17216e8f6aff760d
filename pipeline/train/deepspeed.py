"""The engine protocol on DeepSpeed: ZeRO 0 to 3. The one file that imports deepspeed (0.19).

DeepSpeed's checkpoints are not used: `latest` can name an unfinished one, and a flipped byte loads without an error.
Instead the state is gathered tensor by tensor, in one form for every stage, engine and number of ranks.
"""

import os
import warnings
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from transloom.model.losses import LossSum
from transloom.pipeline.errors import UserError
from transloom.pipeline.ranks import rank, world_size
from transloom.pipeline.train.optimizer import (
    KINDS,
    TORCH_DTYPES,
    EngineState,
    FrozenWeights,
    Groups,
    LossScale,
    OptimizerConfig,
    Precision,
    PrecisionConfig,
    StepResult,
    adam_arguments,
    adam_group,
    create_adam_state,
    set_learning_rate,
    share_scalars,
    trained_groups,
)
from transloom.pipeline.train.torch_engine import TorchEngine
from transloom.pipeline.train.uncompiled import keep_uncompiled, plain_import, plain_step

with plain_import():  # DeepSpeed imports mlflow for its autotuner
    import deepspeed
    import deepspeed.ops

    # This module compiles its functions at import, and DeepSpeed imports it at the first step.
    import deepspeed.runtime.zero.muon.original_muon
    from deepspeed import utils as access
    from deepspeed.accelerator import get_accelerator

# Otherwise the first initialisation on a CPU compiles a communication kernel (half a minute, and a crash without a C++
# compiler). The kernel is never used, as it needs MPI's environment.
deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore[reportAttributeAccessIssue]
# DeepSpeed still uses the old names of two of torch's collectives.
warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)


def make_deepspeed_engine(
    module: nn.Module,
    optimizer: OptimizerConfig,
    precision: PrecisionConfig,
    zero_stage: int,
    device: torch.device,
    initial: EngineState | None,
    groups: Groups,
) -> "Stage0Engine | ZeroEngine":
    """See make_engine. Makes a process group of a single rank where there is none."""
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))  # DeepSpeed reads it
    accelerator = get_accelerator()
    assert accelerator is not None
    if device.type == "cpu":  # ZeRO 3 asks at every micro-batch, and each answer would run a program
        num_devices = accelerator.device_count()
        accelerator.device_count = lambda: num_devices  # pyright: ignore[reportAttributeAccessIssue]
    if precision.dtype is Precision.fp16 and zero_stage > 0 and not accelerator.is_fp16_supported():
        raise UserError(
            f"DeepSpeed does not run ZeRO {zero_stage} in fp16 on this device ({device}): precision.dtype=fp16 needs "
            "engine.zero_stage=0 or engine.name=torch here. precision.dtype=bf16 runs with all of them."
        )
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    if zero_stage == 0:
        engine = Stage0Engine(module, optimizer, precision, device, groups)
    else:
        engine = ZeroEngine(module, optimizer, precision, zero_stage, device, groups)
    engine.load_state(initial)
    return engine


def _initialize(module: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> Any:
    config = {
        "train_micro_batch_size_per_gpu": 1,  # unused: the loop counts batches in tokens
        "gradient_accumulation_steps": 1,  # unused: the loop marks the last micro-batch
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
        **settings,
    }
    with plain_import(), redirect_stdout(StringIO()):  # DeepSpeed prints its memory use
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    return engine


class Stage0Engine(TorchEngine):
    """DeepSpeed's data parallelism around the same fp32 masters as plain torch.

    DeepSpeed's own 16-bit optimizers of stage 0 accumulate gradients in 16 bits, and its fp16 optimizer unscales a loss
    that was never scaled. So DeepSpeed runs its fp32 path here, in which the given optimizer decides.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig,
        precision: PrecisionConfig,
        device: torch.device,
        groups: Groups,
    ) -> None:
        super().__init__(module, optimizer, precision, device, groups)
        self._deepspeed = _initialize(
            module,
            self._optimizer,
            {"gradient_clipping": 0.0, "gradient_allreduce_op": "sum"},  # the optimizer clips
        )
        self._deepspeed.enable_backward_allreduce = False  # `step` reduces the fp32 sum over the micro-batches

    def forward_backward(self, batch: Any, *, scale: float, last: bool) -> LossSum:
        self._deepspeed.set_gradient_accumulation_boundary(last)
        loss: LossSum = self._deepspeed(batch)
        self._deepspeed.backward(loss.total * (scale * self._loss_scale.value), scale_wrt_gas=False)
        self._optimizer.accumulate()
        return LossSum(loss.total.detach(), loss.num_tokens)

    def step(self, learning_rate: float) -> StepResult:
        if world_size() > 1:
            self._deepspeed.buffered_allreduce_fallback(grads=[self._optimizer.gradient])
        set_learning_rate(self._optimizer, learning_rate)
        self._deepspeed.step()
        return self._optimizer.result


class ZeroEngine:
    """ZeRO 1, 2 and 3 (Rajbhandari et al. 2020): ranks share masters and moments, gradients, parameters."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig,
        precision: PrecisionConfig,
        zero_stage: int,
        device: torch.device,
        groups: Groups,
    ) -> None:
        self.device = device
        self._stage = zero_stage
        self._loss_scale = LossScale(precision)
        trained = trained_groups(module, groups)
        self._named = {name: parameter for named in trained.values() for name, parameter in named.items()}
        self._frozen = FrozenWeights(module)
        self._shapes = {name: parameter.shape for name, parameter in self._named.items()}
        weights = {name: p.detach().to("cpu", copy=True) for name, p in self._named.items()} if rank() == 0 else {}
        module.to(TORCH_DTYPES[precision.dtype])
        keep_uncompiled(torch.optim.Adam)
        self._adam = torch.optim.Adam(
            [adam_group(settings, list(named.values())) for settings, named in trained.items()],
            **adam_arguments(optimizer),
        )
        self._adam.step = lambda closure=None: plain_step(self._adam)  # DeepSpeed calls this
        size = sum(shape.numel() for shape in self._shapes.values())
        settings = _zero_settings(zero_stage, precision.dtype, optimizer.clip_norm, size)
        self._deepspeed = _initialize(module, self._adam, settings)
        self._zero = self._deepspeed.optimizer
        self._create_adam_state()
        # DeepSpeed made its masters from the module's parameters, already rounded to the compute type.
        self._set("weights", weights)
        self._apply_loss_scale()

    def _create_adam_state(self) -> None:
        if self._stage == 3:
            self._flats = list(self._zero.fp32_partitioned_groups_flat)
        else:
            self._flats = [flat for group in self._zero.param_groups for flat in group["params"]]
        for flat in self._flats:
            create_adam_state(self._adam, flat)
        if self._stage != 3:
            self._zero._lazy_init_hp_params_optimizer_state()  # what DeepSpeed does after Adam's first step

    def _apply_loss_scale(self) -> None:
        if self._loss_scale.dynamic:
            self._zero.override_loss_scale(self._loss_scale.value)

    def forward_backward(self, batch: Any, *, scale: float, last: bool) -> LossSum:
        self._deepspeed.set_gradient_accumulation_boundary(last)
        self._is_backward = False
        loss: LossSum = self._deepspeed(batch)
        self._is_backward = True
        # The engine sums over the ranks, but stage 3 averages. DeepSpeed itself multiplies by the loss scale.
        factor = scale * world_size() if self._stage == 3 else scale
        self._deepspeed.backward(loss.total * factor, scale_wrt_gas=False)
        return LossSum(loss.total.detach(), loss.num_tokens)

    def recover(self) -> bool:
        """False: a backward pass can't be undone, since DeepSpeed's hooks add each gradient to the sum at once. Under
        stage 2 every backward pass is a collective, under stage 3 the forward pass too."""
        return not self._is_backward and (self._stage == 1 or (self._stage == 2 and world_size() == 1))

    def step(self, learning_rate: float) -> StepResult:
        set_learning_rate(self._adam, learning_rate)
        self._deepspeed.step()
        skipped = not self._deepspeed.was_step_applied()
        norm = float("inf") if skipped else float(self._deepspeed.get_global_grad_norm())
        result = StepResult(norm, skipped, self._loss_scale.value)
        self._loss_scale.update(skipped)
        self._apply_loss_scale()
        return result

    def weights(self) -> dict[str, Tensor]:
        return {**self._gathered("weights"), **self._frozen.tensors}

    def state(self) -> EngineState:
        steps = int(self._adam.state[self._flats[0]]["step"].item())
        tensors = {f"{kind}/{name}": value for kind in KINDS for name, value in self._gathered(kind).items()}
        tensors |= {f"weights/{name}": value for name, value in self._frozen.tensors.items()}
        return EngineState(tensors, {"adam_step": steps, **self._loss_scale.state()})

    def load_state(self, state: EngineState | None) -> None:
        scalars = share_scalars(state, self._shapes, self._frozen.shapes)
        self._frozen.load(state, self._whole)
        if scalars is None:
            return
        tensors = state.tensors if state is not None else {}
        for kind in KINDS:
            prefix = f"{kind}/"
            self._set(kind, {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        for flat in self._flats:
            self._adam.state[flat]["step"].fill_(scalars["adam_step"])
        self._loss_scale.load_state(scalars)
        self._apply_loss_scale()

    def _whole(self, parameter: nn.Parameter) -> AbstractContextManager[Any]:
        """Within the block the parameter is whole. At its end stage 3 shares out rank 0's value."""
        return deepspeed.zero.GatheredParameters(parameter, modifier_rank=0) if self._stage == 3 else nullcontext()

    def _gathered(self, kind: str) -> dict[str, Tensor]:
        """All trained parameters' values of one of KINDS, on rank 0's CPU. Other ranks hold one parameter at a time."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._named.items():
            value = self._get(kind, parameter)
            if rank() == 0:
                tensors[name] = value.cpu()
            del value  # before the next value is gathered
        return tensors

    def _get(self, kind: str, parameter: nn.Parameter) -> Tensor:
        if kind == "weights":
            value = access.safe_get_full_fp32_param(parameter)
        else:
            value = access.safe_get_full_optimizer_state(parameter, kind)
        assert value is not None
        return value

    @torch.no_grad()
    def _set(self, kind: str, tensors: dict[str, Tensor]) -> None:
        """Shares rank 0's tensors out; "weights" also sets the parameters in the compute type."""
        for name, parameter in self._named.items():
            if rank() == 0:
                value = tensors[name].to(self.device)
            else:
                value = torch.empty(self._shapes[name], device=self.device)
            if world_size() > 1:
                dist.broadcast(value, 0)
            self._set_one(kind, parameter, value)
        if kind == "weights" and self._stage != 3:
            self._zero.update_lp_params()

    def _set_one(self, kind: str, parameter: nn.Parameter, value: Tensor) -> None:
        if self._stage != 3:
            if kind == "weights":
                access.safe_set_full_fp32_param(parameter, value)
            else:
                access.safe_set_full_optimizer_state(parameter, value, kind)
            return
        # The full setters of stage 3 fail where the ranks do not divide the parameter's size.
        share = self._zero.get_local_fp32_param(parameter).numel()
        padded = torch.zeros(share * world_size(), device=value.device)
        padded[: value.numel()] = value.flatten()
        mine = padded[share * rank() : share * (rank() + 1)]
        if kind == "weights":
            access.safe_set_local_fp32_param(parameter, mine)
            with self._whole(parameter):
                if rank() == 0:
                    parameter.data.copy_(value)
        else:
            access.safe_set_local_optimizer_state(parameter, mine, kind)


def _zero_settings(stage: int, dtype: Precision, clip_norm: float, size: int) -> dict[str, Any]:
    # DeepSpeed allocates whole buffers of this many elements, so they are no larger than the model.
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": min(size, 50_000_000)}
    settings: dict[str, Any] = {"zero_optimization": zero, "gradient_clipping": clip_norm}
    if stage != 3:  # stage 3 can't
        settings["gradient_allreduce_op"] = "sum"
    if dtype is Precision.bf16:
        settings["bf16"] = {"enabled": True, "immediate_grad_update": True, "check_grad_overflow": True}
    elif dtype is Precision.fp16:
        settings["fp16"] = {"enabled": True, "loss_scale": 1.0}  # overridden by this engine's loss scale
    return settings
