"""All uses of Ray's (2.60) private names, except for a node's start in local_node.py, a worker's in fork_server.py and
the process group's in jobs/training/process_group.py. Most patches make Ray do less: each process that is not started
saves seconds before the first step. Everything works without these patches, only later, so a patch can be removed when
a newer Ray renames its target. Only jobs/training/attempts.py needs its parts: the workers' places, each node's free
resources, and the nodes that are going away.
"""

import asyncio
import json
import logging
import os
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import ray
from ray import _raylet
from ray._private import services, state, utils, worker
from ray._private.node import Node
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.core.generated import runtime_env_agent_pb2
from ray.exceptions import RpcError
from ray.job_config import JobConfig

from transloom.jobs.ray_cluster.fork_server import FORK_CLIENT, ForkServer
from transloom.jobs.ray_cluster.local_node import NODE_ENVIRONMENT, SETUP_WORKER
from transloom.jobs.training.heartbeat import Worker
from transloom.pipeline.search_path import ROOT
from transloom.pipeline.secrets import redacted

ANSWER_SECONDS = 10.0
# Ray's messages.
MANY_PROCESSES = "worker processes have been started"  # harmless where several trainings run at once on purpose
WORKER_DIED = "A worker died or was killed while executing a task"
NODE_DIED = ("Raylet is terminated", "has been marked dead because the detector")
RAY_SETUP_WORKER = Path(ray.__file__).with_name("_private") / "workers" / "setup_worker.py"
NOT_NEEDED_ALONE = ("start_monitor", "start_log_monitor", "start_api_server")
raylet: Any = _raylet  # compiled, and has no types
agent_messages: Any = runtime_env_agent_pb2
_agents: list[ThreadingHTTPServer] = []
AGENT_PORTS = (
    raylet.METRICS_AGENT_PORT_NAME,
    raylet.METRICS_EXPORT_PORT_NAME,
    raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME,
)


@contextmanager
def few_processes(meanwhile: Callable[[], object], server: ForkServer | None = None) -> Iterator[None]:
    """Within the block a command's own Ray starts fewer processes: no autoscaler's monitor, since nothing scales; no
    log monitor, since the driver shows no workers' logs; no dashboard, whose server would start, and delay the command,
    even if switched off; no dashboard's agent. A failed start leaves no processes.

    Args:
        meanwhile: called while the node starts.
        server: forks the node's workers, and `end_environment_agents` has to be called after Ray's end; None: each
            worker is a process that starts anew, and so is the agent of runtime environments.
    """
    names = (*NOT_NEEDED_ALONE, "start_head_processes", "start_ray_processes")
    usual = {name: getattr(Node, name) for name in names}
    start_process = services.start_ray_process
    nodes: list[Node] = []

    def start_head(self: Node) -> None:
        nodes.append(self)
        usual["start_head_processes"](self)

    def start_rest(self: Node) -> None:
        usual["start_ray_processes"](self)
        meanwhile()
        _wait_for_node(self)

    def start_one(command: list[str], *rest: Any, **more: Any) -> Any:
        info = start_process(_own_raylet(command, server), *rest, **more)
        if server and _is_raylet(command):
            server.expect(info.process.pid)
        return info

    for name in NOT_NEEDED_ALONE:
        setattr(Node, name, lambda *_, **__: None)
    Node.start_head_processes, Node.start_ray_processes = start_head, start_rest
    services.start_ray_process = start_one
    try:
        yield
    except BaseException:
        for node in nodes:
            node.kill_all_processes(check_alive=False, wait=True)
        raise
    finally:
        services.start_ray_process = start_process
        for name, method in usual.items():
            setattr(Node, name, method)


def _is_raylet(command: list[str]) -> bool:
    return any(word.startswith("--python_worker_command=") for word in command)


def _own_raylet(command: list[str], server: ForkServer | None) -> list[str]:
    """The command of a Ray process; a raylet's with forked workers, or with workers that this project's setup_worker.py
    starts, and without the dashboard's agent. A raylet ends if its agents, which import for seconds, have not written
    their ports after 15 s, as on a busy machine. So the ports are known before: -1, Ray's number of a service that is
    off, and one that is free now for the agent of runtime environments, which the raylet then waits for only where a
    task needs it. In the place of the dashboard's agent is `cat`, which ends with the raylet: its input is a pipe from
    there."""
    options = dict(one.split("=", 1) for one in command if "=" in one)
    if not _is_raylet(command):
        return command
    for name in AGENT_PORTS:
        raylet.persist_port(options["--session_dir"], options["--node_id"], name, -1)
    options["--python_worker_command"] = options["--python_worker_command"].replace(
        f" {RAY_SETUP_WORKER} ", f" {shlex.quote(str(SETUP_WORKER))} "
    )
    if server:
        worker = options["--python_worker_command"].partition(" ")
        client = shlex.join(["-IS", str(FORK_CLIENT), server.socket])
        options["--python_worker_command"] = f"{worker[0]} {client} {worker[2]}"
        options["--runtime_env_agent_command"] = "cat"
        port = start_environment_agent(options["--node_ip_address"])
    else:
        with socket.socket() as free:
            free.bind((options["--node_ip_address"], 0))
            port = free.getsockname()[1]
    own = {"--dashboard_agent_command": "cat", "--runtime_env_agent_port": str(port)}
    own |= {
        name: options[name].replace("--runtime-env-agent-port=0", f"--runtime-env-agent-port={port}")
        for name in ("--python_worker_command", "--runtime_env_agent_command")
    }
    return [f"{name}={own[name]}" if (name := one.partition("=")[0]) in own else one for one in command]


class _EnvironmentAgent(BaseHTTPRequestHandler):
    """Answers a raylet as Ray's agent of runtime environments, for environments of variables alone."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/get_or_create_runtime_env":
            request = agent_messages.GetOrCreateRuntimeEnvRequest.FromString(body)
            reply = environment_reply(request.serialized_runtime_env)
        else:  # /delete_runtime_env_if_possible
            reply = agent_messages.DeleteRuntimeEnvIfPossibleReply(status=agent_messages.AGENT_RPC_STATUS_OK)
        answer = reply.SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def environment_reply(environment: str) -> Any:
    """The agent's reply to a task's runtime environment, as JSON."""
    settings = json.loads(environment or "{}")
    if others := settings.keys() - {"env_vars", "config", "_ray_commit"}:
        return agent_messages.GetOrCreateRuntimeEnvReply(
            status=agent_messages.AGENT_RPC_STATUS_FAILED,
            error_message=f"a command's own Ray knows no {', '.join(sorted(others))} of a runtime environment",
        )
    return agent_messages.GetOrCreateRuntimeEnvReply(
        status=agent_messages.AGENT_RPC_STATUS_OK,
        serialized_runtime_env_context=json.dumps({"env_vars": settings.get("env_vars", {})}),
    )


def start_environment_agent(host: str) -> int:
    """Starts an agent in a thread of this process; returns its port. Ray's own would import for two seconds, and the
    first task would wait for it."""
    agent = ThreadingHTTPServer((host, 0), _EnvironmentAgent)
    threading.Thread(target=agent.serve_forever, daemon=True).start()
    _agents.append(agent)
    return agent.server_address[1]


def end_environment_agents() -> None:
    while _agents:
        agent = _agents.pop()
        agent.shutdown()
        agent.server_close()


def _wait_for_node(node: Node) -> None:
    """Waits until the node is registered; Ray itself checks only once a second.

    Raises:
        RuntimeError: the node's process has ended.
    """
    client: Any = node.get_gcs_client()
    deadline = time.monotonic() + float(NODE_ENVIRONMENT["RAY_raylet_start_wait_time_s"])
    while time.monotonic() < deadline:
        with suppress(RpcError):  # busy; the next check may succeed
            if any(one.hex() == node.node_id for one in client.get_all_node_info(timeout=ANSWER_SECONDS)):
                return
        if node.dead_processes():
            raise RuntimeError(f"its processes ended: {', '.join(kind for kind, _ in node.dead_processes())}.")
        time.sleep(0.02)


@contextmanager
def in_a_group_of_their_own() -> Iterator[None]:
    """Puts the processes that Ray starts in the block into a process group of their own. Else a signal to the command's
    process group, as from `timeout` and schedulers, would end them at once, before the command could save anything."""
    usual = services.ConsolePopen
    services.ConsolePopen = partial(usual, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = usual


@contextmanager
def without_sigterm_handler() -> Iterator[None]:
    """Within the block `ray.init` leaves the process's handler of SIGTERM alone. Ray's own would end the command with
    exit code 15 and without a message."""
    before = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before


@contextmanager
def redacted_command() -> Iterator[None]:
    """Hides secrets in the command line that Ray records when a command connects: Ray's dashboard and API show it to
    everybody."""
    usual = utils.get_entrypoint_name
    utils.get_entrypoint_name = lambda: redacted(usual())
    try:
        yield
    finally:
        utils.get_entrypoint_name = usual


class _OwnFolder(list[str]):
    """The first folders of a worker's import path. Ray would put the current folder before all others: a user's
    transloom.py there would be imported in place of the project, and the worker would never start."""

    def extend(self, folders: Any) -> None:
        pass


def job_config() -> Any:
    """A `JobConfig` that lets workers import the command's code. None in a submitted job, whose code Ray unpacks for
    the workers."""
    if RAY_JOB_CONFIG_JSON_ENV_VAR in os.environ:
        return None
    config = JobConfig()
    config._py_driver_sys_path = _OwnFolder([ROOT])
    return config


def trainer_class() -> type:
    """A TorchTrainer whose controller, which starts and polls the workers, runs in this process instead of an actor. An
    actor would import all of Ray Train and torch again before it could start the workers."""
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
            # Ray's code without the controller's actor, which only checkpoints reported to Ray need.
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
            # The torch hook of Ray 2.60 raises after Ray has ended a worker for memory, since OutOfMemoryError is no
            # RayActorError. The group's places would stay reserved, and the next attempt would wait for them.
            try:
                super().shutdown()
            except Exception:
                if self.has_started():
                    self.abort()
                raise

    class FixedNumber(FixedScalingPolicy):
        """A policy that requests no machines, since there is no autoscaler."""

        def _maybe_send_resource_request(self) -> None:
            pass

        _send_resource_request = _cancel_resource_request = _maybe_send_resource_request

    class Trainer(TorchTrainer):
        is_alone = False  # whether Ray is this command's own
        # Called when the workers have their places, with a function that gives the places up.
        on_places: Callable[[Callable[[], object]], None] = staticmethod(lambda give_up: None)
        on_workers: Callable[[list[Worker]], None] = staticmethod(lambda workers: None)  # after their start

        def _create_default_callbacks(self) -> Any:
            unused: list[type] = [DatasetsCallback]  # starts a process for Ray's own datasets
            # PlacementGroupCleanerCallback cleans up after a dead controller. After a driver Ray itself cleans up, at
            # the job's end. A sweep's trial needs the callback, which queries the dashboard; a command's own Ray has
            # no dashboard.
            if self.is_alone or ray.get_runtime_context().get_actor_id() is None:
                unused.append(PlacementGroupCleanerCallback)
            return [one for one in super()._create_default_callbacks() if not isinstance(one, tuple(unused))]

        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            logger = logging.getLogger("ray.train")
            if not logger.handlers:  # to the session's folder, as the actor would, not to the terminal
                logger.addHandler(SessionFileHandler("ray-train-controller.log"))
                logger.propagate = False
            if self.is_alone:
                arguments["scaling_policy"] = FixedNumber(self.scaling_config)
            told = {"on_places": staticmethod(self.on_places), "on_workers": staticmethod(self.on_workers)}
            group = type("Workers", (Workers,), told)
            controller = type("Controller", (TrainController,), {"worker_group_cls": group})(**arguments)
            # Not asyncio.run, which handles Ctrl-C itself.
            loop = asyncio.new_event_loop()
            try:
                loop.run_until_complete(controller.run())
            finally:
                loop.close()
            return controller.get_result()

    # This actor synchronises workers that report checkpoints to Ray; this project's workers report none.
    worker_group.SynchronizationActor = _Nobody  # pyright: ignore
    group_state._shutdown_sync_actor = lambda actor: None
    return Trainer


class _Nobody:
    """A replacement for an actor's class that starts no process."""

    @classmethod
    def options(cls, **_: Any) -> type["_Nobody"]:
        return cls

    @classmethod
    def remote(cls, **_: Any) -> "_Nobody":
        return cls()


def free_resources() -> dict[str, dict[str, float]]:
    """Each living node's free resources, by node ID. Ray's public functions give only those of the whole cluster."""
    return state.available_resources_per_node()


def draining_nodes() -> set[str]:
    """The IDs of the nodes that Ray was told to empty, since their machines are going away."""
    return set(state.state.get_draining_nodes())


def dead_processes() -> str | None:
    """The name of an ended process of this command's own Ray; None: all processes live."""
    node = worker._global_node
    ended = node.dead_processes() if node else []
    return f"Ray's process {ended[0][0]}" if ended else None


def bootstrap_address(address: str) -> str | None:
    """host:port of the cluster at an address such as `auto`; None if there is none, or Ray can't read the address."""
    try:
        return services.canonicalize_bootstrap_address(address)
    except Exception:  # Ray raises many classes
        return None


def is_startup_timeout(error: BaseException) -> bool:
    """Whether a training failed because the cluster had no room for its workers within Ray's time limit."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)


@contextmanager
def without_messages(*texts: str) -> Iterator[None]:
    """Keeps Ray's messages that contain one of the texts from the terminal."""
    show = worker.print_to_stdstream

    def show_others(data: Any, *args: Any, **options: Any) -> None:
        if not any(text in line for line in data["lines"] for text in texts):
            show(data, *args, **options)

    worker.print_to_stdstream = show_others
    try:
        yield
    finally:
        worker.print_to_stdstream = show
