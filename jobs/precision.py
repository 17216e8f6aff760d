"""Precision: what `precision=auto` comes to where the workers are, and a warning where training would crawl."""

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jobs.cluster import living_nodes, node_address, room_for_workers, start_on_nodes
from jobs.config import ClusterConfig, Config, read_config
from jobs.console import console
from jobs.machine import native_precisions, product_speed
from pipeline.train.optimizer import Precision

NODE_SECONDS = 120.0
THIS_MACHINE = "this machine"


def with_precision(config: Config, recorded: Path | None = None) -> Config:
    """The configuration with `precision=auto` decided: as a run or a sweep recorded it when it was new, else by the
    devices that its workers may get. With `cluster.address`, inside a Ray session.

    Args:
        recorded: the config.yaml of the run or the sweep, there or not.
    """
    if config.precision.dtype is not Precision.auto:
        return config
    if recorded is not None and recorded.exists():
        dtype = read_config(recorded).precision.dtype
    else:
        dtype = _best_everywhere(config.cluster)
    return dataclasses.replace(config, precision=dataclasses.replace(config.precision, dtype=dtype))


def warn_of_slow_precision(config: Config) -> None:
    """Says where no instruction multiplies in the run's precision, and how slow it is there: measured on a CPU."""
    dtype, cluster = config.precision.dtype.value, config.cluster
    slow = [node for node, native in _native_on_nodes(cluster).items() if dtype not in native]
    if not slow:
        return
    told = "the GPU emulates it"
    if not cluster.gpus_per_worker:
        ratio = _measured_ratio(slow[0], dtype)
        if ratio >= 1:
            return
        told = f"products in {dtype} run at {ratio:.2g} of the speed of fp32, measured now"
    console.print(
        f"Warning     precision={dtype} will be slow on {', '.join(slow)}: {told}. A run keeps its precision; a "
        "new one with precision=auto takes what the device has instructions for",
        style="yellow",
    )


@cache  # asked and told once, also where a command makes several runs
def _best_everywhere(cluster: ClusterConfig) -> Precision:
    """The best precision that all devices which a worker may get have instructions for."""
    native = _native_on_nodes(cluster)
    common = [one for one in next(iter(native.values())) if all(one in others for others in native.values())]
    better = {node: found[0] for node, found in native.items() if found[0] != common[0]}
    poorest = ", ".join(node for node in native if node not in better)
    if better:
        told = ", ".join(f"{node} has {best}" for node, best in better.items())
        console.print(f"Precision   {common[0]}, for workers may get {poorest}, which has nothing better ({told})")
    else:
        console.print(f"Precision   {common[0]}, the best that {poorest} has instructions for")
    return Precision(common[0])


def _nodes_for_workers(cluster: ClusterConfig) -> list[dict]:
    """The nodes on which a worker has room when they are idle."""
    one = dataclasses.replace(cluster, num_workers=1)
    return [node for node in living_nodes() if room_for_workers(one, [node["Resources"]])]


def _native_on_nodes(cluster: ClusterConfig) -> dict[str, Sequence[str]]:
    """The precisions that each node's devices have instructions for, the best first, by the node's address."""
    use_gpu = cluster.gpus_per_worker > 0
    if not cluster.address:
        return {THIS_MACHINE: native_precisions(use_gpu)}
    import ray

    nodes = _nodes_for_workers(cluster)
    found = ray.get(start_on_nodes(nodes, native_precisions, [(use_gpu,)] * len(nodes)), timeout=NODE_SECONDS)
    return dict(zip(map(node_address, nodes), found, strict=True))


def _measured_ratio(address: str, dtype: str) -> float:
    """How fast a node's CPU multiplies in this precision, fp32 being 1."""
    if address == THIS_MACHINE:
        return product_speed(dtype) / product_speed("fp32")
    import ray

    nodes = [node for node in living_nodes() if node_address(node) == address] * 2
    speed, of_fp32 = ray.get(start_on_nodes(nodes, product_speed, [(dtype,), ("fp32",)]), timeout=NODE_SECONDS)
    return speed / of_fp32
