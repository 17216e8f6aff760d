"""Resolves `precision=auto` for the workers' devices, and warns of a slow precision."""

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from transloom.jobs.config.compose import read_config
from transloom.jobs.config.schema import ClusterConfig, Config
from transloom.jobs.ray_cluster.machine import native_precisions, product_ratio
from transloom.jobs.ray_cluster.session import living_nodes, node_address, room_for_workers, start_on_nodes
from transloom.jobs.terminal.console import console
from transloom.pipeline.errors import UserError
from transloom.pipeline.train.optimizer import Precision

NODE_SECONDS = 120.0
THIS_MACHINE = "this machine"


def with_precision(config: Config, recorded: Path | None = None) -> Config:
    """The configuration with `precision=auto` resolved: to the precision that the run or sweep recorded at its start,
    else by the devices that the workers may get. With `cluster.address`, to be called in a Ray session.

    Args:
        recorded: the config.yaml of the run or the sweep, existing or not.
    """
    if config.precision.dtype is not Precision.auto:
        return config
    if recorded is not None and recorded.exists():
        dtype = read_config(recorded).precision.dtype
    else:
        dtype = _best_everywhere(config.cluster)
    return dataclasses.replace(config, precision=dataclasses.replace(config.precision, dtype=dtype))


def warn_of_slow_precision(config: Config) -> None:
    """Warns, once, of devices without instructions for the run's precision, with the measured slowness of a CPU."""
    _warn(config.precision.dtype, config.cluster)


@cache
def _warn(asked: Precision, cluster: ClusterConfig) -> None:
    dtype = asked.value
    slow = [node for node, native in _native_on_nodes(cluster).items() if dtype not in (*native, "auto")]
    if not slow:
        return
    ratio = None if cluster.gpus_per_worker else _measured_ratio(slow[0], dtype)
    if ratio is not None and ratio >= 1:
        return
    told = f"it is emulated at {ratio:.2g} of the speed of fp32 (measured now)" if ratio else "it is emulated"
    console.print(
        f"Warning     precision={dtype} will be slow on {', '.join(slow)}: {told}. A run keeps its precision; a "
        "new one with precision=auto takes what the device has instructions for",
        style="yellow",
    )


@cache  # resolved and printed once, even if a command makes several runs
def _best_everywhere(cluster: ClusterConfig) -> Precision:
    best, told = common_precision(cluster)
    console.print(f"Precision   {best.value}, {told}")
    return best


def common_precision(cluster: ClusterConfig) -> tuple[Precision, str]:
    """The best precision with instructions on all devices that a worker may get, and the reason in words."""
    native = _native_on_nodes(cluster)
    common = [one for one in next(iter(native.values())) if all(one in others for others in native.values())]
    better = {node: found[0] for node, found in native.items() if found[0] != common[0]}
    poorest = ", ".join(node for node in native if node not in better) or "all together"
    if not better:
        return Precision(common[0]), f"the best that {poorest} has instructions for"
    others = ", ".join(f"{node} has {best}" for node, best in better.items())
    return Precision(common[0]), f"for workers may get {poorest}, which has nothing better ({others})"


def _native_on_nodes(cluster: ClusterConfig) -> dict[str, Sequence[str]]:
    """By node address, the precisions with instructions on each device that a worker may get, the best first.

    Raises:
        UserError: a node does not answer.
    """
    use_gpu = cluster.gpus_per_worker > 0
    if not cluster.address:
        return {THIS_MACHINE: native_precisions(use_gpu)}
    import ray

    one = dataclasses.replace(cluster, num_workers=1)
    nodes = [node for node in living_nodes() if room_for_workers(one, [node["Resources"]])]
    try:
        found = ray.get(start_on_nodes(nodes, native_precisions, [(use_gpu,)] * len(nodes)), timeout=NODE_SECONDS)
    except Exception as error:  # Ray raises many classes: a node is gone, or runs no task
        raise UserError(
            f"precision: a node of the cluster does not say what it has ({type(error).__name__}): look at its Ray, or "
            "say the precision (precision=fp32)"
        ) from error
    return dict(zip(map(node_address, nodes), found, strict=True))


def _measured_ratio(address: str, dtype: str) -> float | None:
    """The speed of a node's CPU in this precision, relative to fp32; None where the node does not answer."""
    if address == THIS_MACHINE:
        return product_ratio(dtype)
    import ray

    nodes = [node for node in living_nodes() if node_address(node) == address]
    try:
        return ray.get(start_on_nodes(nodes, product_ratio, [(dtype,)]), timeout=NODE_SECONDS)[0]
    except Exception:  # only the number is missing
        return None
