"""What a machine has for training and what it lacks, each with what to do about it. It runs on every node of a cluster,
so it is light to import."""

import os
import platform
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from jobs.nodes import versions

ENOUGH_DISK = 10e9  # bytes: checkpoints of a small model, and room to write the next one
INSTRUCTIONS = {"amx_bf16": "AMX bf16", "avx512_bf16": "AVX-512 bf16"}
SIZE = 1024  # of the square matrices by which arithmetic is timed


class Finding(NamedTuple):
    """One line of what was found; `advice` is empty where all is well."""

    what: str
    found: str
    advice: str = ""


def examine_machine(output_dir: str) -> list[Finding]:
    """Versions, compiler, processor and its arithmetic, GPUs, memory, and room for the output."""
    memory = psutil.virtual_memory()
    return [
        _libraries(),
        _compiler(),
        _processor(),
        _arithmetic(),
        gpus(),
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
    return Finding("compiler", found or "none", "")  # nothing of ours needs one


def _processor() -> Finding:
    flags = processor_flags()
    known = [label for flag, label in INSTRUCTIONS.items() if flag in flags]
    cpus = len(os.sched_getaffinity(0))
    return Finding("processor", f"{processor_name()}, {cpus} CPUs, {', '.join(known) or 'no bf16 instructions'}")


def processor_name() -> str:
    """The processor's name as people know it."""
    return _cpuinfo("model name") or platform.processor() or "unknown processor"


def processor_flags() -> list[str]:
    """What the processor can do, in Linux's words: avx2, amx_bf16, …"""
    return _cpuinfo("flags").split()


def _cpuinfo(key: str) -> str:
    """What Linux says of the first processor; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _arithmetic() -> Finding:
    import torch

    speed = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        one = torch.randn(SIZE, SIZE, dtype=dtype)
        speed[name] = 2 * SIZE**3 / _seconds(lambda one=one: one @ one)
    ratio = speed["bf16"] / speed["fp32"]
    found = ", ".join(f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in speed.items())
    slow = "precision=fp32 is the faster one when training on this CPU" if ratio < 1.1 else ""
    return Finding("arithmetic", f"{found} (bf16 {ratio:.1f} times as fast)", slow)


def _seconds(work: Callable[[], object]) -> float:
    """The quickest of a few times, after one to warm up."""
    work()
    times = []
    for _ in range(5):
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
    names = [torch.cuda.get_device_properties(i).name for i in range(torch.cuda.device_count())]
    advice = "" if torch.cuda.is_bf16_supported() else "these know no bf16: precision=fp16"
    return Finding("GPUs", ", ".join(names), advice)


def _disk(folder: Path) -> Finding:
    existing = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK):
        return Finding("output", f"{folder} can't be written", "give another output_dir=")
    advice = "checkpoints may not fit: free some space, or give another output_dir=" if free < ENOUGH_DISK else ""
    return Finding("output", f"{free / 1e9:,.0f} GB free for {folder}", advice)


def _ray_token() -> Finding:
    """Ray writes the token of a cluster that it starts by itself without a thought for who may read it."""
    file = Path.home() / ".ray" / "auth_token"
    if not file.exists():
        return Finding("Ray's token", "none")
    shared = file.stat().st_mode & 0o077
    return Finding("Ray's token", f"{file}", f"others can read it: chmod 600 {file}" if shared else "")


class Place(NamedTuple):
    """Where the ranks of a process group meet."""

    host: str
    port: int


def offer_place() -> Place:
    import ray

    with socket.socket() as probe:
        probe.bind(("", 0))
        return Place(ray.util.get_node_ip_address(), probe.getsockname()[1])


def exchange(rank: int, world_size: int, place: Place, backend: str, num_bytes: int = 1 << 24) -> float:
    """Sums a tensor over a process group of one rank a node, as training does; bytes a second."""
    from datetime import timedelta

    import torch
    from torch import distributed as dist

    from jobs.process_group import use_node_interface

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
            tensor[0].item()  # waits for it

        return num_bytes / _seconds(sum_up)
    finally:
        dist.destroy_process_group()
