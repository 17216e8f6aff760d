"""Examines a machine's fitness for training, with advice for each fault. Runs on every node of a cluster, so the module
is light to import."""

import os
import platform
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from transloom.jobs.ray_cluster.nodes import versions
from transloom.pipeline.processor import bf16_instructions, processor_name

ENOUGH_DISK = 10e9  # bytes: checkpoints of a small model, and room to write the next one
FIRST_WITH_BF16, FIRST_WITH_FP16 = (8, 0), (7, 0)  # NVIDIA's compute capabilities: Ampere, Volta
LONG_SECONDS = 1.0
SIZE = 1024  # of the square matrices by which arithmetic is timed


class Finding(NamedTuple):
    """One line of the examination; `advice` is empty where all is well."""

    what: str
    found: str
    advice: str = ""


def examine_machine(output_dir: str, precision: str = "auto", use_gpu: bool = False) -> list[Finding]:
    """Versions, compiler, processor and its arithmetic, GPUs, memory, and disk space for the output.

    Args:
        precision: of the training. use_gpu: whether a worker has a GPU.
    """
    memory = psutil.virtual_memory()
    return [
        _libraries(),
        _compiler(),
        _processor(),
        _arithmetic(),
        gpus(),
        _precision(precision, use_gpu),
        Finding("memory", f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f}"),
        _disk(Path(output_dir)),
        _ray_token(),
    ]


def _libraries() -> Finding:
    found = versions()
    listed = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    missing = [name for name, version in found.items() if version is None]
    old = tuple(map(int, platform.python_version_tuple()[:2])) < (3, 11)
    if missing:
        return Finding("versions", listed, f"install {', '.join(missing)}, with the versions of constraints.txt")
    return Finding("versions", listed, "Python 3.11 or newer is needed" if old else "")


def _compiler() -> Finding:
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return Finding("compiler", found or "none", "")  # this project needs no compiler


def _processor() -> Finding:
    cpus = len(os.sched_getaffinity(0))
    known = ", ".join(bf16_instructions()) or "no bf16 instructions"
    return Finding("processor", f"{processor_name()}, {cpus} CPUs, {known}")


def native_precisions(use_gpu: bool) -> list[str]:
    """The precisions that a training worker's device has instructions for, the best one first."""
    if not use_gpu:
        return ["bf16", "fp32"] if bf16_instructions() else ["fp32"]
    capability = min(_gpu_capabilities(), default=FIRST_WITH_BF16)  # unknown: taken for a recent GPU
    if capability >= FIRST_WITH_BF16:
        return ["bf16", "fp16", "fp32"]
    return ["fp16", "fp32"] if capability >= FIRST_WITH_FP16 else ["fp32"]


def _gpu_capabilities() -> list[tuple[int, ...]]:
    """The compute capabilities of the GPUs that torch sees, which CUDA_VISIBLE_DEVICES may limit. In a Ray task without
    GPUs torch sees none, so the driver's command lists all GPUs."""
    import torch

    if count := torch.cuda.device_count():
        return [torch.cuda.get_device_capability(i) for i in range(count)]
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = re.findall(r"^(\d+)\.(\d+)\s*$", told, re.MULTILINE)
    return [(int(major), int(minor)) for major, minor in found]


def _arithmetic() -> Finding:
    speed = {name: product_speed(name) for name in ("fp32", "bf16")}
    found = ", ".join(f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in speed.items())
    return Finding("arithmetic", f"{found} (bf16 {speed['bf16'] / speed['fp32']:.2g} times as fast)")


def product_ratio(precision: str) -> float:
    """The speed of this machine's CPU in a precision, relative to fp32."""
    return product_speed(precision) / product_speed("fp32")


def product_speed(precision: str) -> float:
    """FLOP/s of a matrix product on this machine's CPU."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    matrix = torch.randn(SIZE, SIZE).to(dtype)
    return 2 * SIZE**3 / _seconds(lambda: matrix @ matrix)


def _precision(asked: str, use_gpu: bool) -> Finding:
    """The precision that `precision=auto` gives on this machine; fp32 is no fault."""
    found = f"auto is {native_precisions(use_gpu=False)[0]} on this CPU"
    if _gpu_capabilities():
        found += f", {native_precisions(use_gpu=True)[0]} on its GPUs"
    is_slow = asked != "auto" and asked not in native_precisions(use_gpu)
    return Finding("precision", found, f"{asked} is emulated here, and slow: leave precision= out" if is_slow else "")


def _seconds(work: Callable[[], object]) -> float:
    """The quickest of a few times, the first of which warms up; long work is not repeated."""
    times: list[float] = []
    while len(times) < 6 and sum(times) < LONG_SECONDS:
        started_at = time.perf_counter()
        work()
        times.append(time.perf_counter() - started_at)
    return min(times)


def gpus() -> Finding:
    import torch

    if not torch.cuda.is_available():
        has_driver = shutil.which("nvidia-smi") is not None
        advice = "this machine has a driver for NVIDIA GPUs, but PyTorch sees none: install its CUDA build"
        return Finding("GPUs", "none", advice if has_driver else "")
    return Finding("GPUs", ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))


def _disk(folder: Path) -> Finding:
    existing = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        return Finding("output", f"{folder} can't be written", "give another output_dir=")
    advice = "checkpoints may not fit: free some space, or give another output_dir=" if free < ENOUGH_DISK else ""
    return Finding("output", f"{free / 1e9:,.0f} GB free for {folder}", advice)


def _ray_token() -> Finding:
    """Whether other users can read Ray's token, which Ray does not protect when it starts a cluster by itself."""
    file = Path.home() / ".ray" / "auth_token"
    if not file.exists():
        return Finding("Ray's token", "none")
    shared = file.stat().st_mode & 0o077
    return Finding("Ray's token", f"{file}", f"others can read it: chmod 600 {file}" if shared else "")


class Place(NamedTuple):
    """The meeting place of a process group's ranks."""

    host: str
    port: int


def offer_place() -> Place:
    import ray

    with socket.socket() as probe:
        probe.bind(("", 0))
        return Place(ray.util.get_node_ip_address(), probe.getsockname()[1])


def exchange(rank: int, world_size: int, place: Place, backend: str, num_bytes: int = 1 << 24) -> float:
    """Sums a tensor over a process group with a rank on each node, as training does; returns bytes a second."""
    from datetime import timedelta

    import torch
    from torch import distributed as dist

    from transloom.jobs.training.process_group import use_node_interface

    use_node_interface()
    dist.init_process_group(
        backend,
        init_method=f"tcp://{place.host}:{place.port}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=30),
    )
    try:
        tensor = torch.ones(num_bytes // 4, device="cuda" if backend == "nccl" else "cpu")

        def sum_up() -> None:
            dist.all_reduce(tensor)
            tensor[0].item()  # waits for the sum

        return num_bytes / _seconds(sum_up)
    finally:
        dist.destroy_process_group()
