"""All names of Ray (2.60) that it keeps private, but for those of a node's start in local_node.py. With most of them
Ray is made to do less than it does by itself: each process that is not started is seconds less before the first step.
Without any of this everything still works, only later: what a newer Ray calls otherwise can be left out here. Not so
what jobs/training/attempts.py needs: where the workers are, which resources each node has free, which nodes are going
away.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import ray
from ray._private import services, state, utils, worker
from ray._private.node import Node
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.exceptions import RpcError
from ray.job_config import JobConfig

from jobs.ray_cluster.local_node import NODE_ENVIRONMENT
from jobs.training.heartbeat import Worker
from pipeline.search_path import ROOT
from pipeline.secrets import redacted

ANSWER_SECONDS = 10.0
# Messages of Ray's.
MANY_PROCESSES = "worker processes have been started"  # where several trainings are there at once on purpose
WORKER_DIED = "A worker died or was killed while executing a task"
NODE_DIED = ("Raylet is terminated", "has been marked dead because the detector")
NOT_NEEDED_ALONE = ("start_monitor", "start_log_monitor", "start_api_server")


@contextmanager
def few_processes(meanwhile: Callable[[], object]) -> Iterator[None]:
    """For the start of a Ray that is one command's alone: without the autoscaler's monitor, since nothing scales,
    without the one that sends the workers' logs to the driver, which shows none, and without the dashboard, whose
    server starts, and is waited for, even where it is switched off. The agent of a node without dashboard is smaller.
    What has come up of a Ray that then does not start is ended.

    Args:
        meanwhile: is done while the node comes up, which is waited for otherwise.
    """
    names = (*NOT_NEEDED_ALONE, "start_head_processes", "start_ray_processes")
    usual = {name: getattr(Node, name) for name in names}
    missing = utils.get_dashboard_dependency_error
    nodes: list[Node] = []

    def start_head(self: Node) -> None:
        nodes.append(self)
        usual["start_head_processes"](self)

    def start_rest(self: Node) -> None:
        usual["start_ray_processes"](self)
        meanwhile()
        _wait_for_node(self)

    for name in NOT_NEEDED_ALONE:
        setattr(Node, name, lambda *_, **__: None)
    Node.start_head_processes, Node.start_ray_processes = start_head, start_rest
    utils.get_dashboard_dependency_error = lambda: ImportError("no dashboard is wanted")
    try:
        yield
    except BaseException:
        for node in nodes:
            node.kill_all_processes(check_alive=False, wait=True)
        raise
    finally:
        utils.get_dashboard_dependency_error = missing
        for name, method in usual.items():
            setattr(Node, name, method)


def _wait_for_node(node: Node) -> None:
    """Waits until the node is known; Ray itself looks once a second.

    Raises:
        RuntimeError: the node's process has ended.
    """
    client: Any = node.get_gcs_client()
    deadline = time.monotonic() + float(NODE_ENVIRONMENT["RAY_raylet_start_wait_time_s"])
    while time.monotonic() < deadline:
        with suppress(RpcError):  # busy: asked again
            if any(one.hex() == node.node_id for one in client.get_all_node_info(timeout=ANSWER_SECONDS)):
                return
        if node.dead_processes():
            raise RuntimeError(f"its processes ended: {', '.join(kind for kind, _ in node.dead_processes())}.")
        time.sleep(0.02)


@contextmanager
def in_a_group_of_their_own() -> Iterator[None]:
    """For the processes that Ray starts here. Else a signal to the command's process group, as `timeout` and schedulers
    send it, would end them at once, and the command could save nothing."""
    usual = services.ConsolePopen
    services.ConsolePopen = partial(usual, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = usual


@contextmanager
def redacted_command() -> Iterator[None]:
    """For the connection to a Ray, which records the command's line: its dashboard and its API show that to all."""
    usual = utils.get_entrypoint_name
    utils.get_entrypoint_name = lambda: redacted(usual())
    try:
        yield
    finally:
        utils.get_entrypoint_name = usual


class _OwnFolder(list[str]):
    """The folders that a worker looks in first. Ray would add the current folder, and would put it before all others: a
    model.py of the user's there would be imported in place of the project's, and the worker would never start."""

    def extend(self, folders: Any) -> None:
        pass


def job_config() -> Any:
    """A `JobConfig` with which workers import what the command imports. None in a submitted job, whose code Ray unpacks
    for them."""
    if RAY_JOB_CONFIG_JSON_ENV_VAR in os.environ:
        return None
    config = JobConfig()
    config._py_driver_sys_path = _OwnFolder([ROOT])
    return config


def trainer_class() -> type:
    """A TorchTrainer whose controller, which starts the workers and asks now and then how they are, lives in this
    process and not in an actor: one process less, that would import all of Ray Train and torch again before it could
    start the workers."""
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
    from ray.train.v2._internal.execution.worker_group import WorkerGroup, worker_group
    from ray.train.v2._internal.execution.worker_group import state as group_state
    from ray.train.v2._internal.logging.logging import SessionFileHandler
    from ray.util.placement_group import remove_placement_group

    class Workers(WorkerGroup):
        on_places: Callable[[Callable[[], object]], None]
        on_workers: Callable[[list[Worker]], None]

        def _create_workers(self, num_workers: Any, placement_group: Any, *rest: Any, **options: Any) -> Any:
            # Ray waits for the processes without a limit; without their placement group it ends them and raises.
            self.on_places(partial(remove_placement_group, placement_group))
            return super()._create_workers(num_workers, placement_group, *rest, **options)

        def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, train_context_args: Any) -> None:
            # As Ray's, without the controller's actor: only checkpoints that are reported to Ray need it.
            ray.get(
                [
                    worker.actor.init_train_context.remote(
                        train_run_context=self._train_run_context,
                        distributed_context=worker.distributed_context,
                        synchronization_actor=None,
                        storage_context=self._storage_context,
                        worker_callbacks=self._worker_callbacks_to_propagate,
                        controller_actor=None,
                        **{name: values[i] for name, values in train_context_args.items()},
                    )
                    for i, worker in enumerate(workers)
                ]
            )
            self.on_workers(
                [
                    Worker(worker.distributed_context.world_rank, worker.metadata.node_id, worker.metadata.pid)
                    for worker in workers
                ]
            )
            self._decorate_worker_log_file_paths(workers)

        def shutdown(self) -> None:
            # The torch hook of Ray 2.60 raises where Ray ended a worker for memory: OutOfMemoryError is no
            # RayActorError. The group's places would stay reserved, and the next attempt would wait for them.
            try:
                super().shutdown()
            except Exception:
                if self.has_started():
                    self.abort()
                raise

    class FixedNumber(FixedScalingPolicy):
        """Asks nobody for machines: there is no autoscaler."""

        def _maybe_send_resource_request(self) -> None:
            pass

        _send_resource_request = _cancel_resource_request = _maybe_send_resource_request

    class Trainer(TorchTrainer):
        is_alone = False  # whether Ray is this command's own
        # When the workers have their places; called with what gives these up.
        on_places: Callable[[Callable[[], object]], None] = staticmethod(lambda give_up: None)
        on_workers: Callable[[list[Worker]], None] = staticmethod(lambda workers: None)  # when their processes are up

        def _create_default_callbacks(self) -> Any:
            unused: list[type] = [DatasetsCallback]  # the manager of Ray's own datasets, a process
            # Another one clears up after a controller that died. After the driver Ray itself does, at the job's end; it
            # is needed after a trial of a sweep, but asks the dashboard, which a Ray of the command's own has not.
            if self.is_alone or ray.get_runtime_context().get_actor_id() is None:
                unused.append(PlacementGroupCleanerCallback)
            return [one for one in super()._create_default_callbacks() if not isinstance(one, tuple(unused))]

        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            logger = logging.getLogger("ray.train")
            if not logger.handlers:  # into the session's folder, where the actor would write it, not to the terminal
                logger.addHandler(SessionFileHandler("ray-train-controller.log"))
                logger.propagate = False
            if self.is_alone:
                arguments["scaling_policy"] = FixedNumber(self.scaling_config)
            told = {"on_places": staticmethod(self.on_places), "on_workers": staticmethod(self.on_workers)}
            group = type("Workers", (Workers,), told)
            controller = type("Controller", (TrainController,), {"worker_group_cls": group})(**arguments)
            # Not asyncio.run, which takes Ctrl-C for itself.
            loop = asyncio.new_event_loop()
            try:
                loop.run_until_complete(controller.run())
            finally:
                loop.close()
            return controller.get_result()

    # The actor at which workers meet that report checkpoints to Ray; ours do not.
    worker_group.SynchronizationActor = _Nobody  # pyright: ignore
    group_state._shutdown_sync_actor = lambda actor: None
    return Trainer


class _Nobody:
    """In the place of an actor's class: nothing is started."""

    @classmethod
    def options(cls, **_: Any) -> type["_Nobody"]:
        return cls

    @classmethod
    def remote(cls, **_: Any) -> "_Nobody":
        return cls()


def free_resources() -> dict[str, dict[str, float]]:
    """What each living node has free, by the node's ID. Ray's public functions know it of the whole cluster alone."""
    return state.available_resources_per_node()


def draining_nodes() -> set[str]:
    """The IDs of the nodes that Ray was told to empty, since their machines are going away."""
    return set(state.state.get_draining_nodes())


def dead_processes() -> str | None:
    """Names a process of the Ray that this command has started which has ended; None: all live."""
    node = worker._global_node
    ended = node.dead_processes() if node else []
    return f"Ray's process {ended[0][0]}" if ended else None


def bootstrap_address(address: str) -> str | None:
    """host:port of the cluster that an address such as `auto` means; None where there is none, or Ray can't read it."""
    try:
        return services.canonicalize_bootstrap_address(address)
    except Exception:  # Ray's many
        return None


def is_startup_timeout(error: BaseException) -> bool:
    """Whether a training failed since the cluster had no room for its workers within Ray's time limit."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


@contextmanager
def without_messages(*texts: str) -> Iterator[None]:
    """Keeps those of Ray's messages from the terminal in which one of the texts stands."""
    show = worker.print_to_stdstream

    def show_others(data: Any, *args: Any, **options: Any) -> None:
        if not any(text in line for line in data["lines"] for text in texts):
            show(data, *args, **options)

    worker.print_to_stdstream = show_others
    try:
        yield
    finally:
        worker.print_to_stdstream = show
