"""What the bench says: on which machine, tables, a picture, and its run in the tracker."""

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jobs.cluster import ALLOCATOR
from jobs.config import Config
from jobs.console import console, quantity, table
from jobs.summary import processor_name

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")  # those that products go by
PACKAGES = ("torch", "deepspeed", "ray", "transformers", "ctranslate2")


def machine(config: Config) -> dict[str, Any]:
    """What the figures depend on, beside the code."""
    import torch

    flags = next((line for line in _lines("/proc/cpuinfo") if line.startswith("flags")), "").split()
    gpu = torch.cuda.get_device_name() if config.cluster.gpus_per_worker > 0 else None
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in flags],
        "gpu": gpu,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "versions": {name: metadata.version(name) for name in PACKAGES if find_spec(name)},
        "allocator": ALLOCATOR,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_bytes().decode(errors="replace").split("\n")
    except OSError:
        return []


def print_bench(result: Mapping[str, Any], folder: Path) -> None:
    about = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    console.print(f"\n{about['processor']}, {about['cores']} cores ({' '.join(about['flags'])}), {versions}")
    if about["gpu"]:
        console.print(f"GPU: {about['gpu']}")
    console.print(f"All sides have {' '.join(f'{key}={value}' for key, value in about['allocator'].items())}")
    if "training" in result:
        _print_training(result)
    console.print(f"\nFigures {folder / 'bench.json'}")


def _print_training(result: Mapping[str, Any]) -> None:
    training, settings = result["training"], result["settings"]
    rows = []
    for name, one in training["contenders"].items():
        target, source = one["target_tokens_per_second"], one["source_tokens_per_second"]
        rows.append(
            [
                name,
                f"{target['median']:,.0f}",
                f"{target['least']:,.0f}-{target['most']:,.0f}",
                f"{source['median']:,.0f}",
                f"{quantity(one['model_flops_per_second']['median'])}FLOP/s",
                f"{one['share_of_matmul']:.1%}",
                f"{one['peak_bytes'] / 1e6:,.0f} MB",
                f"{one['imported_bytes'] / 1e6:,.0f} MB",
                f"{one['loss']:.3f}",
                f"{one['other_cpu_share']:.2f}",
            ]
        )
    steps = next(iter(training["contenders"].values()))["steps"]
    columns = [
        "contender",
        "target tok/s",
        "least-most",
        "source tok/s",
        "model",
        "of matmul",
        "peak memory",
        "imports",
    ]
    columns += [f"loss, {steps} steps", "CPUs of others"]
    dtype, bench = settings["precision"]["dtype"], result["bench"]
    title = f"\nTraining in {dtype}, {bench['rounds']} rounds of {bench['steps']} steps; tokens without padding"
    console.print(table(title, columns, rows, right=tuple(range(1, len(columns)))))
    matmul = training["matmul_flops_per_second"]
    console.print(f"A matrix product of 2048 x 1024 x 1024 in {dtype}: {quantity(matmul['median'])}FLOP/s")
    print_ratios(training["ratios"])
    for note in training["notes"]:
        console.print(note)


def print_ratios(ratios: list[Mapping[str, Any]]) -> None:
    rows = [
        [
            one["what"],
            f"{one['value']:.2f}",
            f"{one['spread']['least']:.2f}-{one['spread']['most']:.2f}",
            f"{'at least' if one['at_least'] else 'at most'} {one['goal']:g}",
            "met" if one["is_met"] else "not met",
        ]
        for one in ratios
    ]
    console.print(table("\nRatios", ["ratio", "value", "by round", "target", ""], rows, right=(1, 2)))
