"""How long a step takes on so many workers: computation, update, and a ring that adds the gradients up."""

from dataclasses import dataclass, replace

from transloom.pipeline.plan.hardware import Hardware
from transloom.pipeline.train.optimizer import Precision

FORMULA = (
    "step = ceil(M / W) x max(FLOPs of a micro-batch / (peak x utilisation), launches x their time) + update + "
    "communication; all-reduce = 2 (W - 1) / W x bytes / bandwidth + 2 (W - 1) x latency, nothing overlapped"
)
UPDATE_BYTES = 40  # read and written for each parameter: norm, moments, masters, gradient, the copy in 16 bits


@dataclass(frozen=True)
class Work:
    """What a step has to do.

    Attributes:
        micro_batches: of a step; a worker takes every W-th.
        flops: of a step, over all workers. launches: of kernels for a micro-batch. parameters: of the model.
        stage: ZeRO's; 0 stands for plain torch too.
    """

    micro_batches: int
    flops: float
    launches: int
    parameters: int
    precision: Precision
    stage: int


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, by what they go to."""

    computation: float
    update: float
    communication: float

    @property
    def total(self) -> float:
        return self.computation + self.update + self.communication


def accumulation(micro_batches: int, workers: int) -> int:
    """Micro-batches that the busiest worker has in a step; the others wait for it."""
    return -(-micro_batches // workers)


def step_time(work: Work, hardware: Hardware, workers: int) -> StepTime:
    """A step of `work` shared by so many workers."""
    held = accumulation(work.micro_batches, workers)
    seconds = work.flops / work.micro_batches / hardware.flops_per_second(work.precision, workers)
    share = 1 if work.stage == 0 else workers  # ZeRO: each updates its own part
    return StepTime(
        computation=held * max(seconds, work.launches * hardware.launch),
        update=UPDATE_BYTES * work.parameters / share / hardware.memory_bandwidth,
        communication=communication_seconds(work, hardware, workers),
    )


def grown(work: Work, workers: int, times: int) -> Work:
    """The same work with a batch that grew with the workers: each of them keeps what one of `workers` has."""
    held = accumulation(work.micro_batches, workers)
    micro_batches = held * times
    return replace(work, micro_batches=micro_batches, flops=work.flops / work.micro_batches * micro_batches)


def communication_seconds(work: Work, hardware: Hardware, workers: int) -> float:
    """What a step sends: every pass around the ring (half an all-reduce) moves (W - 1) / W of the bytes."""
    if workers == 1:
        return 0.0
    is_near = workers <= hardware.per_machine  # else the slowest link sets the pace of the whole ring
    bandwidth = hardware.link if is_near else hardware.network
    latency = hardware.link_latency if is_near else hardware.network_latency
    return sum(
        count * ((workers - 1) / workers * size / bandwidth + (workers - 1) * latency)
        for count, size in _passes(work, accumulation(work.micro_batches, workers))
    )


def _passes(work: Work, held: int) -> list[tuple[int, float]]:
    """(how often, bytes): gradients travel in fp32, weights in the compute type.

    Stages 0 and 1 add gradients up once a step, 2 and 3 with every micro-batch; DeepSpeed's stages 1 and 2 all-reduce
    whole buckets, then gather the weights; stage 3 gathers the weights for the forward and for the backward pass.
    """
    gradients = 4.0 * work.parameters
    weights = (4.0 if work.precision is Precision.fp32 else 2.0) * work.parameters
    match work.stage:
        case 0:
            return [(2, gradients)]
        case 1:
            return [(2, gradients), (1, weights)]
        case 2:
            return [(2 * held, gradients), (1, weights)]
        case _:
            return [(held, gradients), (2 * held, weights)]
