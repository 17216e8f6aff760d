"""Ray: starting or joining a cluster, spreading tasks over it, and the workers' environment."""

import errno
import logging
import os
import stat
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transloom.jobs.ray_cluster.fork_server import ForkServer, start_fork_server
from transloom.jobs.ray_cluster.local_node import NODE_ENVIRONMENT
from transloom.jobs.ray_cluster.watch import ended_by_loss, refusal
from transloom.jobs.remote.clusters import keep_ray_token_private
from transloom.jobs.runs.stopping import ended_by_sigterm
from transloom.jobs.terminal.console import console
from transloom.pipeline.disk import disk_trouble, free_bytes, free_space
from transloom.pipeline.errors import UserError

if TYPE_CHECKING:
    from transloom.jobs.config.schema import ClusterConfig

# By default glibc gives large blocks back to the kernel and asks for them again at every step, which costs 17 to 25 %
# of a training step on a CPU. glibc reads these settings when a process starts: the workers' environment needs them.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 28),
    # oneDNN prepares a kernel for every shape of a product. Its default cache of 1024 is too small for training.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "4096",
}

ANSWER_SECONDS = 10.0
RAY_BYTES = 1 << 20  # Ray does not start with less space for its own files
LONGEST_ROOT = 24  # characters; a socket's path has at most 107, of which Ray's part takes 60


@contextmanager
def ray_session(
    config: "ClusterConfig", meanwhile: Callable[[], object] = lambda: None, modules: Sequence[str] = ()
) -> Iterator[None]:
    """Joins the cluster of `config.address`, or starts Ray on this machine alone, for as long as the block runs.

    Args:
        meanwhile: called while Ray's processes start, for imports; not called if a cluster is joined.
        modules: what workers import beside the usual.
    Raises:
        Terminated: SIGTERM ended the block.
        UserError: there is no cluster at the address, the cluster can never place the workers, or it was lost.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default; if unset, Ray warns
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # Disables Ray Train's preemption watcher: this project's workers never query it.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # The driver polls the workers at this interval; a short interval notices a training's end sooner.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Metrics are for a dashboard only, and the controller's log would go to the terminal of this process.
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING", "0")
    if not config.address:
        keep_ray_token_private()
        os.environ.update(NODE_ENVIRONMENT)
    # Before ray is imported: jobs/ray_cluster/fork_server.py says why.
    server = start_fork_server(modules) if not config.address and not config.gpus_per_worker else None
    try:
        with _joined_or_started(config, meanwhile, server):
            yield
    finally:
        if server:
            server.end()


@contextmanager
def _joined_or_started(
    config: "ClusterConfig", meanwhile: Callable[[], object], server: ForkServer | None
) -> Iterator[None]:
    import ray  # takes seconds, so only after the configuration is checked

    from transloom.jobs.ray_cluster.patches import NODE_DIED, WORKER_DIED, end_environment_agents, without_messages

    with ended_by_sigterm() as is_ended:
        if config.address:
            _refuse_silent(config.address)
            try:
                _init_ray(config.address)
            except Exception as error:
                raise UserError(f"cluster.address: no Ray cluster answers at {config.address!r}: {error}") from error
        else:
            _start_ray(meanwhile, server, is_ended)
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        try:
            if is_ended():  # Ray swallowed the interrupt
                raise KeyboardInterrupt
            with (
                _ended_by_loss(config),
                without_messages(WORKER_DIED, *NODE_DIED),  # jobs/training/attempts.py reports the consequence
            ):
                refuse_unplaceable(config, [node["Resources"] for node in living_nodes()])
                yield
        finally:
            ray.shutdown()
            end_environment_agents()


def _ended_by_loss(config: "ClusterConfig") -> AbstractContextManager[None]:
    """Ends the block if Ray's processes are gone: those of the command's own Ray, or else the cluster's head node or
    this machine's node."""
    import ray

    from transloom.jobs.ray_cluster.patches import dead_processes

    kept = "Finished stages and checkpoints are kept"
    if not config.address:
        return ended_by_loss(dead_processes, f"{kept}: the same command goes on from there")
    context = ray.get_runtime_context()
    addresses = {f"the cluster's head node ({context.gcs_address})": context.gcs_address}
    here = [node for node in living_nodes() if node["NodeID"] == context.get_node_id()]
    addresses |= {f"this machine's node of the cluster ({node_address(node)})": node_address(node) for node in here}

    def silent() -> str | None:
        return next((name for name, address in addresses.items() if refusal(address)), None)

    return ended_by_loss(silent, f"{kept}: once the cluster is up again, the same command goes on from there")


def _start_ray(meanwhile: Callable[[], object], server: ForkServer | None, is_ended: Callable[[], bool]) -> None:
    """Starts this command's own Ray, if need be at a second attempt, but not for a command that SIGTERM ends.

    Raises:
        UserError: the second attempt fails, too, or the disk is full for Ray's temporary files.
    """
    from transloom.jobs.ray_cluster.patches import few_processes

    if message := temp_folder_trouble():
        raise UserError(message)
    for is_last in (False, True):
        try:
            with few_processes(meanwhile, None if is_last else server):  # which knows the first raylet alone
                _init_ray("local")
            return
        except Exception as error:  # Ray raises a bare Exception if one of its processes does not start in time
            if is_ended():
                raise
            if is_last and (message := temp_folder_trouble() or disk_trouble(error)):
                raise UserError(message) from error
            if is_last:
                raise UserError(
                    f"Ray did not start on this machine (is it very busy, or out of memory?): {error} Try again"
                ) from error
            console.print(f"Ray did not start on this machine ({error}); it is started once more")


def temp_folder_trouble() -> str | None:
    """The error's text if there is no room for the files or the shared memory of this command's own Ray, which Ray does
    not report; else None."""
    shared = Path("/dev/shm")
    if (free := free_bytes(shared)) is not None and free < RAY_BYTES:
        return f"{shared}, Ray's shared memory, is full ({free_space(shared)}). Free some space there"
    advice = (
        "or set RAY_TMPDIR to a folder on another disk"
        if os.environ.get("RAY_TMPDIR")
        else f"or set TMPDIR to a folder on another disk, with a path of at most {LONGEST_ROOT} characters"
    )
    folder = Path(os.environ.get("RAY_TMPDIR") or _temp_root())
    try:
        if not os.environ.get("RAY_TMPDIR"):
            folder = Path(private_temp_folder() or folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as file:
            file.write(bytes(1 << 10))
            file.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            return f"{folder}: Ray can't write its temporary files there ({error.strerror}). Mend that, {advice}"
    else:
        free = free_bytes(folder)
        if free is None or free >= RAY_BYTES:
            return None
    return f"{folder}: no room for Ray's temporary files ({free_space(folder)}). Free some space there, {advice}"


def _temp_root() -> str:
    root = os.environ.get("TMPDIR") or "/tmp"
    return root if len(root) <= LONGEST_ROOT and os.access(root, os.W_OK) else "/tmp"


def private_temp_folder() -> str | None:
    """The folder for sockets and logs of the command's own Ray: transloom-user-<number>/ray in TMPDIR, or else in /tmp.
    By default Ray makes a folder `ray` there, which every user of the machine may write. None if RAY_TMPDIR names a
    folder.

    Ray opens its own folder to all users, so the parent folder is closed to them. The folder stays, for the logs.
    """
    if os.environ.get("RAY_TMPDIR"):
        return None
    root = _temp_root()
    folder = Path(root, f"transloom-user-{os.getuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    state = folder.lstat()
    if state.st_uid != os.getuid() or not stat.S_ISDIR(state.st_mode):  # another user has made the folder
        folder = Path(tempfile.mkdtemp(prefix="transloom-", dir=root))
    folder.chmod(0o700)
    return str(folder / "ray")


def _init_ray(address: str) -> None:
    import ray

    from transloom.jobs.ray_cluster.patches import (
        in_a_group_of_their_own,
        job_config,
        redacted_command,
        without_sigterm_handler,
    )

    with in_a_group_of_their_own(), redacted_command(), without_sigterm_handler():
        ray.init(
            address=address,
            _temp_dir=private_temp_folder() if address == "local" else None,
            job_config=job_config(),
            include_dashboard=False if address == "local" else None,
            logging_level=logging.ERROR,
            log_to_driver=False,  # rank 0 reports progress through a file of the run's folder
        )


def _refuse_silent(address: str) -> None:
    """Checks that a cluster answers: Ray would retry for minutes, and `auto` may also mean another command's own Ray.

    Raises:
        UserError: no cluster answers at the address.
    """
    from transloom.jobs.ray_cluster.patches import bootstrap_address

    if "://" in address:  # Ray's client has its own time limits
        return
    found = bootstrap_address(address)
    if found is None:  # Ray itself reports the fault
        return
    if reason := refusal(found, ANSWER_SECONDS):
        raise UserError(
            f"cluster.address: no Ray cluster answers at {address!r} ({found}: {reason}). Start one "
            "(transloom cluster up), or leave it out (cluster.address=null) for a Ray of this command's own"
        )


def refuse_unplaceable(config: "ClusterConfig", nodes: Sequence[Mapping[str, float]]) -> None:
    """Checks that the workers fit: Ray would wait for ever for missing resources, which looks like a hang.

    Args:
        nodes: the resources of each of the cluster's nodes when idle.
    Raises:
        UserError: the workers do not fit.
    """
    each = worker_resources(config)
    for kind, amount in each.items():
        needed, have = amount * config.fewest_workers, sum(node.get(kind, 0) for node in nodes)
        if needed > have + 1e-6:
            raise UserError(
                f"cluster.num_workers: {config.fewest_workers} workers of {amount:g} {kind} need {needed:g}, but the "
                f"cluster has {have:g}; lower cluster.num_workers or cluster.{kind.lower()}s_per_worker"
            )
    room = room_for_workers(config, nodes)
    if room < config.fewest_workers:
        worker = " and ".join(f"{amount:g} {kind}" for kind, amount in each.items())
        has = "; ".join(" and ".join(f"{node.get(kind, 0):g} {kind}" for kind in each) for node in nodes)
        raise UserError(
            f"cluster.num_workers: a worker of {worker} must fit on one node, and the cluster's nodes ({has}) have "
            f"room for {room} of {config.fewest_workers}; lower cluster.num_workers or what a worker takes"
        )


def room_for_workers(config: "ClusterConfig", nodes: Sequence[Mapping[str, float]]) -> int:
    """The number of workers that fit on nodes with these resources."""
    each = worker_resources(config)
    return sum(min(int(node.get(kind, 0) / amount + 1e-6) for kind, amount in each.items()) for node in nodes)


def worker_resources(config: "ClusterConfig") -> dict[str, float]:
    """The resources that one worker takes."""
    each = {"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker}
    return {kind: amount for kind, amount in each.items() if amount}


def spare_cpus(config: "ClusterConfig") -> int:
    """Whole CPUs for a task beside the training workers. On several nodes at most 1: the free CPUs may be spread over
    the nodes, and a task that needs more than any single node has would wait for ever."""
    spare = free_cpus(config, config.num_workers)
    return spare if len(living_nodes()) == 1 else min(spare, 1)


def free_cpus(config: "ClusterConfig", num_workers: int) -> int:
    """The cluster's whole CPUs beside those of so many training workers; below 0 where these have too few."""
    import ray

    return int(ray.cluster_resources().get("CPU", 0) - num_workers * config.cpus_per_worker)


def living_nodes() -> list[dict[str, Any]]:
    """The cluster's living nodes, in Ray's description."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def node_address(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"


def start_on_nodes(
    nodes: Sequence[Mapping[str, Any]],
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    **options: Any,
) -> list[Any]:
    """Starts a Ray task on each node, with the node's arguments; returns the futures, in the nodes' order."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0, **options)(function)
    return [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(*its)
        for node, its in zip(nodes, arguments, strict=True)
    ]


def map_over_cluster(
    function: Callable[[Any], Any], items: Iterable[Any], num_gpus: float = 0, at_once: int | None = None
) -> Iterator[Any]:
    """As `map`, in Ray tasks of one CPU each; results in the order of the items, at most two for each CPU under way.

    Args:
        at_once: the number of tasks under way; their results then come in the order in which the tasks end.
    Raises:
        the function's own exceptions.
    """
    import ray
    from ray.exceptions import RayTaskError

    environment = {"env_vars": {**ALLOCATOR, "OMP_NUM_THREADS": "1"}}
    remote = ray.remote(num_cpus=1, num_gpus=num_gpus, runtime_env=environment)(function)
    most = at_once or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    under_way: deque[Any] = deque()

    def next_result() -> Any:
        ended = under_way[0] if at_once is None else ray.wait(list(under_way), num_returns=1)[0][0]
        under_way.remove(ended)
        return ray.get(ended)

    try:
        for item in items:
            under_way.append(remote.remote(item))
            if len(under_way) >= most:
                yield next_result()
        while under_way:
            yield next_result()
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from None
