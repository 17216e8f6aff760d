"""Checks a cluster's nodes before a job begins, so that faults show at once and not after hours."""

import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transloom.jobs.config.schema import ClusterConfig, Config
from transloom.jobs.ray_cluster.nodes import differences, examine_node, refuse_unlike, versions
from transloom.jobs.ray_cluster.session import living_nodes, node_address, ray_session, start_on_nodes, worker_resources
from transloom.jobs.remote.package import submission
from transloom.jobs.runs.workspace import output_dir
from transloom.jobs.terminal.console import StatusLine, console
from transloom.pipeline.disk import refuse_unwritable
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.tokenizers import load_tokenizer
from transloom.pipeline.storage import files as storage
from transloom.pipeline.tracking.address import refuse_unreachable, tracking_uri

ROOM_SECONDS = 40.0
NODE_SECONDS = 50.0
DEAD_RUNS_SECONDS = 10.0


@contextmanager
def checked_session(
    config: Config, meanwhile: Callable[[], object] = lambda: None, modules: Sequence[str] = ()
) -> Iterator[None]:
    """As `ray_session`. First checks that the output folder and the storage can be written, then a cluster's nodes.

    Raises:
        UserError: see `check_cluster`, `refuse_unwritable` and `check` in pipeline/storage/files.py.
    """
    refuse_unwritable(output_dir(config))
    if config.storage:
        storage.check(config.storage)
    with ray_session(config.cluster, meanwhile, modules):
        if config.cluster.address:
            check_cluster(config)
        yield
    if config.tracking.enabled:
        from transloom.jobs.runs.report import end_dead_runs  # imports matplotlib, which takes a second

        # In a thread, so that nobody waits for a store that does not answer. The next command does the rest.
        root = output_dir(config)
        dead = threading.Thread(target=end_dead_runs, args=(root, tracking_uri(config.tracking, root)), daemon=True)
        dead.start()
        dead.join(DEAD_RUNS_SECONDS)


def refuse_missing_tokenizer(config: Config) -> None:
    """Checks the scores' tokenizer before the hours of training, not at the first validation.

    Raises:
        UserError: the scores' tokenizer for the target language needs a package that is not installed.
    """
    load_tokenizer(config.bleu_tokenizer)


def check_cluster(config: Config) -> None:
    """
    Raises:
        UserError: MLflow's server does not answer, a node lacks a library or has another version than other nodes, a
            node does not see the output folder, or the workers do not fit now.
    """
    started_at = time.monotonic()
    status = StatusLine()
    status.show("  looking at the cluster's nodes …", now=True)
    here = versions()
    # The submitting machine's versions may differ, since it sends only text; a difference is printed.
    if unlike := differences(submission().get("versions", {}), here):
        console.print(f"Versions here that differ from those of the machine that submitted this: {unlike}")
    if config.tracking.enabled:
        refuse_unreachable(config.tracking, output_dir(config))
    with _marker(output_dir(config)) as marker:
        tasks = _ask_nodes(marker, config.bleu_tokenizer)
        found = _answers(tasks)
    refuse_unlike(here, found, output_dir(config))
    _wait_for_room(config.cluster)
    status.clear()
    console.print(f"Cluster     {len(found)} nodes, checked in {time.monotonic() - started_at:.0f} s")


@contextmanager
def _marker(root: Path) -> Iterator[Path]:
    """A file in the output folder, by which the nodes check that they see the same folder."""
    file = root / f".seen-by-all-{secrets.token_hex(4)}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        file.write_bytes(file.name.encode())
    except OSError as error:
        raise UserError(
            f"output_dir: {root} can't be written on {socket.gethostname()}, where the job's command runs: "
            f"{error.strerror}. Give an output_dir that all machines of the cluster share"
        ) from error
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def _ask_nodes(marker: Path, tokenize: str) -> dict[str, Any]:
    """Starts a task on every living node; returns the futures by node address."""
    nodes = living_nodes()
    futures = start_on_nodes(nodes, examine_node, [(str(marker), tokenize)] * len(nodes))
    return dict(zip(map(node_address, nodes), futures, strict=True))


def _answers(tasks: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    import ray

    found = {}
    deadline = time.monotonic() + NODE_SECONDS
    for node, future in tasks.items():
        try:
            found[node] = ray.get(future, timeout=max(0.1, deadline - time.monotonic()))
        except (
            Exception
        ) as error:  # Ray raises many classes: the node is gone, the task does not start, the time is over
            raise UserError(
                f"the node {node} of the cluster runs nothing ({type(error).__name__}): look at its Ray, or take it "
                "out of the cluster"
            ) from error
    return found


def _wait_for_room(cluster: ClusterConfig) -> None:
    """Raises a UserError if other jobs hold the workers' resources; Ray would wait for ever."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    bundle = worker_resources(cluster)
    group = placement_group([bundle] * cluster.fewest_workers, strategy="PACK")
    try:
        if not group.wait(ROOM_SECONDS):
            free = ", ".join(f"{ray.available_resources().get(kind, 0):g} {kind}" for kind in bundle)
            each = ", ".join(f"{amount:g} {kind}" for kind, amount in bundle.items())
            raise UserError(
                f"cluster.num_workers: there was no room for {cluster.fewest_workers} workers of {each} within "
                f"{ROOM_SECONDS:.0f} s: free are {free}, others hold the rest. Wait for them (transloom jobs lists "
                "them), or lower cluster.num_workers"
            )
    finally:
        remove_placement_group(group)
