"""What a plan knows of the devices that a training may run on. All of it is assumed, with its source, but what a
calibration has measured of this machine."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from transloom.pipeline.train.optimizer import Precision

GB = 1e9

# NVIDIA's DeepLearningExamples train big at 82,000 tokens/s on one A100 in mixed precision: 1.29 GFLOP each, of 312
# TFLOP/s. That is the one published figure for this model, so it stands for all GPUs.
GPU_UTILISATION = 0.33
GPU_LAUNCH = 8e-6  # what torch takes for an operation and its gradient, for each kernel: 5 to 10 microseconds
# A training step of ours took 47 to 51 % of a matrix product's speed on two CPU cores (docs/performance.md), of which
# Ray's processes and the driver took 0.2 beside it.
CPU_UTILISATION = 0.55
RAY_CORES = 0.2


@dataclass(frozen=True)
class Hardware:
    """The device of one worker, and what joins several.

    Attributes:
        key: names it in `price.<key>=`.
        peak: FLOP/s of large dense matrix products, by precision.
        utilisation: part of the peak that a training step reaches, counted as `training_flops` counts.
        crowding: part of its speed that a worker loses to each other worker on its machine.
        lost_to_ray: part that it loses to Ray's own processes where the workers leave them no core.
        memory_bytes: of the device; memory_bandwidth: bytes/s, read and written, of an optimizer's update.
        per_machine: devices in a machine.
        best_precision: what `precision=auto` is there.
        link, network: bytes/s that a device sends to its neighbour within a machine, and between machines.
        link_latency, network_latency: seconds that each step of a ring takes besides.
        launch: seconds of the host's time to start a kernel: a GPU computes no faster. 0 on a CPU.
        price: US dollars an hour of one device.
        origin: where speed and memory come from.
    """

    key: str
    name: str
    peak: Mapping[Precision, float]
    utilisation: float
    memory_bytes: float
    memory_bandwidth: float
    per_machine: int
    link: float
    link_latency: float
    network: float
    network_latency: float
    price: float
    launch: float = GPU_LAUNCH
    best_precision: Precision = Precision.bf16
    crowding: float = 0.0
    lost_to_ray: float = 0.0
    is_gpu: bool = True
    origin: str = "assumed"

    def precision_of(self, asked: Precision) -> Precision:
        """What a training computes in on this device."""
        return self.best_precision if asked is Precision.auto else asked

    def flops_per_second(self, precision: Precision, workers: int) -> float:
        """Of one of so many workers, in the forward and backward pass."""
        others = min(workers, self.per_machine) - 1
        lost = self.crowding * others + (self.lost_to_ray if workers >= self.per_machine else 0.0)
        return self.peak[precision] * self.utilisation * max(0.1, 1 - lost)


def _peak(half: float, single: float) -> dict[Precision, float]:
    return {Precision.bf16: half, Precision.fp16: half, Precision.fp32: single}


# Peaks: dense products without TensorFloat-32, which torch leaves off. An H200 multiplies random bf16 matrices at 790
# TFLOP/s, not at the 989 of its data sheet; the H100 (SXM) is the same chip. Links and networks: four fifths of the
# data sheets' 450 and 300 GB/s (NVLink) and of the 400 and 200 Gb/s for each GPU of NVIDIA's own machines. Prices:
# about what large clouds ask on demand; they differ by a factor of two and more.
_H200 = Hardware(
    key="h200",
    name="H200",
    peak=_peak(790e12, 67e12),
    utilisation=GPU_UTILISATION,
    memory_bytes=141 * GB,
    memory_bandwidth=4800 * GB,
    per_machine=8,
    link=360 * GB,
    link_latency=3e-6,
    network=40 * GB,
    network_latency=10e-6,
    price=4.0,
)
_H100 = replace(_H200, key="h100", name="H100", memory_bytes=80 * GB, memory_bandwidth=3350 * GB, price=3.0)
_A100 = replace(
    _H200,
    key="a100",
    name="A100",
    peak=_peak(312e12, 19.5e12),
    memory_bytes=80 * GB,
    memory_bandwidth=2000 * GB,
    link=240 * GB,
    network=20 * GB,
    price=1.8,
)
GPUS = (_H200, _H100, _A100)

# FLOP/s of a core by what it multiplies bf16 with, and in fp32: measured on virtual machines of two cores
AMX, AVX512_BF16 = _peak(1.05e12, 0.14e12), _peak(0.40e12, 0.10e12)
# Without bf16 instructions bf16 is emulated: by those of AVX-512 (assumed), or at a fifteenth of fp32 (seen on AVX2)
AVX512, PLAIN = _peak(0.05e12, 0.10e12), _peak(0.007e12, 0.10e12)


def this_cpu(cores: int, cores_per_worker: float, memory_bytes: float, flags: Collection[str]) -> Hardware:
    """This machine, a device being what one worker has of it.

    Args:
        cores, memory_bytes: that the machine has. flags: of its processor, as in /proc/cpuinfo.
    """
    per_machine = max(1, int(cores / cores_per_worker))
    has_bf16 = "avx512_bf16" in flags or "bf16" in flags  # of x86, of Arm
    emulated = AVX512 if "avx512f" in flags else PLAIN
    of_core = AMX if "amx_bf16" in flags else AVX512_BF16 if has_bf16 else emulated
    return Hardware(
        key="cpu",
        name="this CPU",
        peak={precision: flops * cores_per_worker for precision, flops in of_core.items()},
        utilisation=CPU_UTILISATION,
        memory_bytes=memory_bytes / per_machine,
        memory_bandwidth=8 * GB * cores_per_worker,
        per_machine=per_machine,
        link=1 * GB,
        link_latency=100e-6,
        network=1 * GB,  # ten gigabits, of which four fifths arrive
        network_latency=100e-6,
        price=0.05 * cores_per_worker,
        launch=0.0,
        best_precision=Precision.fp32 if of_core is emulated else Precision.bf16,
        lost_to_ray=RAY_CORES / cores,
        is_gpu=False,
    )
