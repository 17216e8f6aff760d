"""What a worker holds in memory, by what it is for: read from the engines in `pipeline/train/` and DeepSpeed's code."""

from dataclasses import dataclass

from transloom.model.build import ModelConfig
from transloom.model.losses import rows_at_a_time, softmax_rows
from transloom.pipeline.plan.activations import MicroBatch, activation_bytes

BUCKET = 50_000_000  # elements: the largest reduce_bucket_size that deepspeed.py asks for
GATHERED = 1_000_000_000  # elements that DeepSpeed's stage 3 keeps gathered (stage3_max_live_parameters)

# Assumed: CUDA's context and kernels, workspaces of cuBLAS and NCCL; what torch's allocator has and finds no use for.
GPU_LIBRARIES, GPU_SLACK = 1.5e9, 1.1


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker when it holds the most.

    Attributes:
        libraries: before there is a model.
        weights: in the compute type. optimizer: fp32 masters and Adam's two moments. gradients: with buckets.
        passing: activations and loss, or what a step's end or a checkpoint needs after them, whichever is more.
        kernels: those that oneDNN keeps (`kernels.py`).
    """

    libraries: float
    weights: float
    optimizer: float
    gradients: float
    passing: float
    kernels: float

    @property
    def total(self) -> float:
        return self.libraries + self.weights + self.optimizer + self.gradients + self.passing + self.kernels


@dataclass(frozen=True)
class Footing:
    """What a process needs beside what the model's shape says.

    Attributes:
        libraries: bytes before there is a model, and what any model takes besides.
        slack: factor on all that comes and goes: the allocator finds no use for some of what it has.
    """

    libraries: float
    slack: float


# Measured: a worker's resident memory when its libraries are imported, what any model adds to it, and how much more its
# heap has than is in use: glibc is told to keep what was freed (`ALLOCATOR` in jobs/ray_cluster/session.py).
RAY, RAY_AND_DEEPSPEED, ANY_MODEL, CPU_SLACK = 0.35e9, 0.48e9, 0.035e9, 1.55

GPU = Footing(GPU_LIBRARIES, GPU_SLACK)


def cpu_footing(has_deepspeed: bool) -> Footing:
    """A worker of Ray Train on a CPU, as far as it is known without measuring here."""
    return Footing(ANY_MODEL + (RAY_AND_DEEPSPEED if has_deepspeed else RAY), CPU_SLACK)


def peak_memory(
    config: ModelConfig,
    vocab_size: int,
    parameters: int,
    batch: MicroBatch,
    *,
    stage: int,
    workers: int,
    on_gpu: bool,
    footing: Footing,
    kernels: float = 0.0,
) -> Memory:
    """The most that one of so many workers holds.

    Args:
        stage: ZeRO's; 0 stands for plain torch too.
        kernels: bytes of those that oneDNN keeps.
    """
    c = batch.bytes_per_number
    weights, masters, gradients, reducing = _kept(parameters, c, stage, workers)
    passing = max(activation_bytes(config, batch) + loss_bytes(config, vocab_size, batch, on_gpu), reducing)
    if not on_gpu:  # a checkpoint's copies lie where the worker lies
        passing = max(passing, 12.0 * parameters)
    return Memory(
        libraries=footing.libraries,
        weights=weights,
        optimizer=masters + 8.0 * parameters / (1 if stage == 0 else workers),
        gradients=gradients,
        passing=footing.slack * passing,
        kernels=footing.slack * kernels,
    )


def _kept(parameters: int, c: int, stage: int, workers: int) -> tuple[float, float, float, float]:
    """Bytes of weights in the compute type, masters, gradients with their buckets; and of a step's end."""
    is_fp32 = c == 4
    bucket = min(parameters, BUCKET)
    whole, share = 4.0 * parameters, 4.0 * parameters / workers
    own = float(c * parameters)
    match stage:
        case 0:  # one flat gradient; in fp32 the module's parameters are views of the masters
            return (0.0 if is_fp32 else own), whole, whole, own + (whole if workers > 1 else 0.0)
        case 1:  # every gradient accumulates whole in fp32; a bucket is copied to be reduced
            return own, share, whole + 4.0 * bucket, 4.0 * bucket + share
        case 2:  # a bucket in the compute type, reduced in fp32 into this worker's share
            return own, share, share + c * bucket, (4.0 + c) * bucket + share
        case _:  # all is shared out, but weights are gathered to be used
            gathered = float(c * min(parameters, GATHERED))
            return own / workers + gathered, share, share + 4.0 * bucket, 4.0 * bucket + share


def loss_bytes(config: ModelConfig, vocab_size: int, batch: MicroBatch, on_gpu: bool) -> float:
    """The logits, or a part of them, which become their own gradient, rows in fp32, and both factors' gradients."""
    c, rows = batch.bytes_per_number, min(batch.target_tokens, softmax_rows(vocab_size, not on_gpu))
    softmax = (3 if c == 2 else 2) * 4.0 * rows * vocab_size
    factors = c * config.d_model * (batch.target_tokens + vocab_size)
    return c * rows_at_a_time(batch.target_tokens, vocab_size, c) * vocab_size + max(softmax, factors)
