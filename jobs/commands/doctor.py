"""Doctor: what this machine, or each node of a cluster, has for training and what it lacks, and what to do about it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transloom.jobs.cli import configuration, sort_words
from transloom.jobs.ray_cluster.machine import Finding, examine_machine, exchange, offer_place
from transloom.jobs.remote.clusters import Cluster, choose_cluster, clusters_file, load_clusters
from transloom.jobs.remote.local import living
from transloom.jobs.terminal.console import StatusLine, console
from transloom.pipeline.errors import UserError

if TYPE_CHECKING:
    from transloom.jobs.config.schema import Config

NODE_SECONDS = 120.0


def main(argv: list[str]) -> int:
    words, own, settings = sort_words(argv, own=("to",))
    if words:
        raise UserError(f"doctor: takes to=<cluster> and settings only, not {' '.join(words)}")
    if "to" in own:
        return _ask_cluster(choose_cluster(own["to"]), settings)
    config = configuration("doctor", settings)
    if config.cluster.address:
        return _examine_cluster(config)
    status = StatusLine()
    status.show("  looking at this machine …", now=True)
    found = examine_machine(config.output_dir, *_asked(config)) + _tracking(config) + _storage(config) + _clusters()
    status.clear()
    with_a_cluster = "transloom submit run" if living() else "transloom cluster up"
    return _report({"This machine": found}, "transloom run", with_a_cluster)


def _ask_cluster(cluster: Cluster, settings: Sequence[str]) -> int:
    """The same as a job on the cluster: there this module finds itself with an address."""
    from transloom.jobs.remote.submission import for_cluster, submit, with_cluster_settings

    config = for_cluster(configuration("doctor", with_cluster_settings(settings, cluster)), cluster)
    config = replace(config, name="doctor", cluster=replace(config.cluster, num_workers=1, gpus_per_worker=0))
    return submit("doctor", config, cluster)


def _examine_cluster(config: "Config") -> int:
    from transloom.jobs.ray_cluster.session import living_nodes, node_address, ray_session
    from transloom.jobs.training.precision import common_precision

    with ray_session(config.cluster):
        nodes = living_nodes()
        try:
            reports = _on_each(nodes, examine_machine, [(config.output_dir, *_asked(config))] * len(nodes))
        except Exception as error:  # Ray's many: a node is gone, or runs nothing
            raise UserError(f"a node of the cluster runs nothing ({type(error).__name__}); look at its Ray") from error
        found = dict(zip(map(node_address, nodes), reports, strict=True))
        best, told = common_precision(config.cluster)
        found["Cluster"] = [Finding("precision", f"auto is {best.value}, {told}")]
        found["Cluster"] += _network(nodes) + _tracking(config) + _storage(config)
    return _report(found, "transloom submit run")


def _asked(config: "Config") -> tuple[str, bool]:
    """The precision that was asked for, and whether of GPUs."""
    return config.precision.dtype.value, config.cluster.gpus_per_worker > 0


def _on_each(
    nodes: Sequence[dict[str, Any]], function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], **more: Any
) -> list[Any]:
    """What the function returns on each node, called with the node's arguments."""
    import ray

    from transloom.jobs.ray_cluster.session import start_on_nodes

    return ray.get(start_on_nodes(nodes, function, arguments, **more), timeout=NODE_SECONDS)


def _network(nodes: Sequence[dict[str, Any]]) -> list[Finding]:
    """Whether the nodes that can train reach each other as the ranks of a training do."""
    workers = [node for node in nodes if node["Resources"].get("CPU", 0)]
    if len(workers) < 2:
        return []
    use_gpu = all(node["Resources"].get("GPU", 0) for node in workers)
    backend = "nccl" if use_gpu else "gloo"
    try:
        (place,) = _on_each(workers[:1], offer_place, [()])
        ranks = [(rank, len(workers), place, backend) for rank in range(len(workers))]
        speeds = _on_each(workers, exchange, ranks, num_gpus=int(use_gpu))
    except Exception as error:  # torch's and Ray's; what matters is that they do not meet
        said = str(error).strip().split("\n")[-1][:200]
        advice = (
            "the nodes don't reach each other: open all ports between them, or set GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME to their common network's interface where Ray is started"
        )
        return [Finding(backend, f"failed: {said}", advice)]
    return [Finding(backend, f"{len(workers)} nodes sum up {min(speeds) / 1e9:.2f} GB/s")]


def _tracking(config: "Config") -> list[Finding]:
    from transloom.pipeline.secrets import redacted
    from transloom.pipeline.tracking.address import refuse_unreachable, tracking_uri

    if not config.tracking.enabled:
        return [Finding("MLflow", "off")]
    uri = redacted(tracking_uri(config.tracking, Path(config.output_dir)))
    try:
        refuse_unreachable(config.tracking, Path(config.output_dir))
    except UserError as error:
        return [Finding("MLflow", uri, str(error))]
    return [Finding("MLflow", uri)]


def _storage(config: "Config") -> list[Finding]:
    """Whether what is configured can be written, read and deleted in."""
    from transloom.pipeline.storage import files as storage

    if config.storage is None:
        return []
    try:
        storage.check(config.storage)
    except UserError as error:
        return [Finding("storage", config.storage, str(error))]
    return [Finding("storage", config.storage)]


def _clusters() -> list[Finding]:
    """The clusters' file, and whether their tokens are for their owner alone."""
    try:
        clusters = load_clusters()
    except UserError as error:
        return [Finding("clusters", str(clusters_file()), str(error))]
    found = []
    for cluster in clusters.values():
        try:
            cluster.token()
        except UserError as error:
            found.append(Finding(f"cluster {cluster.name}", cluster.address, str(error)))
        else:
            found.append(Finding(f"cluster {cluster.name}", cluster.address))
    return found or [Finding("clusters", "none named")]


def _report(found: dict[str, list[Finding]], *then: str) -> int:
    """Prints all that was found; 2 where something is to be mended."""
    from transloom.jobs.runs.summary import print_next

    for place, findings in found.items():
        if findings:
            console.print(f"\n{place}", style="bold")
        for one in findings:
            console.print(f"  {'to mend' if one.advice else 'ok':8}{one.what:12} {one.found}")
            if one.advice:
                console.print(f"  {'':8}{'':12} {one.advice}", style="bold")
    num_bad = sum(bool(one.advice) for findings in found.values() for one in findings)
    console.print(f"\n{f'{num_bad} to mend' if num_bad else 'Nothing to mend'}.")
    print_next(*then)
    return 2 if num_bad else 0
