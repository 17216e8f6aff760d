"""`transloom cluster up | down | status`: a Ray cluster of this machine alone, for jobs that outlive their terminal.

Every process listens on loopback only, and asks for a token that a file of the user's alone holds.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from transloom.jobs.ray_cluster.local_node import HOST, NODE_ENVIRONMENT
from transloom.jobs.remote.clusters import (
    LOCAL,
    Cluster,
    clusters_file,
    config_folder,
    load_clusters,
    make_private_folder,
    write_entry,
    write_private,
)
from transloom.jobs.terminal.console import StatusLine, console
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json, write_json

DASHBOARD_PORTS = range(8265, 8285)
ANY_PORT = (0,)
LOG_FILE = "nodes.log"
START_SECONDS = 120.0
END_SECONDS = 10.0


def _counted(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def up(num_nodes: int, cpus: int) -> None:
    """Starts a head, which works too, and `num_nodes` - 1 further nodes of `cpus` CPUs each.

    Raises:
        UserError: it is up already, or does not come up.
    """
    if living():
        raise UserError(f"the local cluster is up already ({_read_state()['address']}): transloom cluster down ends it")
    known = load_clusters().get(LOCAL)
    if known and known.token_file != _token_file():
        raise UserError(f"{clusters_file()}: the entry {LOCAL} is of another cluster; give it another name first")
    _clear()
    make_private_folder(config_folder())
    write_private(_token_file(), secrets.token_hex(32))
    dashboard_port, gcs_port = _free_port(DASHBOARD_PORTS), _free_port(ANY_PORT)
    state: dict[str, Any] = {
        "address": f"http://{HOST}:{dashboard_port}",
        "folder": tempfile.mkdtemp(prefix="transloom-", dir="/tmp"),  # a longer path is too long for Ray's sockets
        "nodes": num_nodes,
        "cpus": cpus,
        "processes": [],
    }
    status = StatusLine()
    status.show("  starting Ray …", now=True)
    try:
        _start(state, gcs_port=gcs_port, dashboard_port=dashboard_port)
        client = _wait_until_up(state, 1)
        for _ in range(num_nodes - 1):
            _start(state, gcs_port=gcs_port)
        _wait_until_up(state, num_nodes, client)
        entry = {"address": state["address"], "token_file": str(_token_file())}
        write_entry(LOCAL, entry)
    except BaseException:
        _end(state)
        _clear()
        raise
    status.clear()
    nodes, each = _counted(num_nodes, "node"), _counted(cpus, "CPU")
    console.print(f"Up          {nodes} of {each}, on this machine's loopback address alone")
    console.print(f"Dashboard   {state['address']} (asks for the token in {_token_file()})")
    console.print(f"Named       {LOCAL} in {clusters_file()}")
    _print_next("transloom submit run", "transloom cluster down")


def down() -> None:
    """Ends what `up` started, and nothing else. Jobs that run there end with it."""
    if not _state_file().exists():
        console.print("The local cluster is not up.")
        _print_next("transloom cluster up")
        return
    status = StatusLine()
    status.show("  ending Ray …", now=True)
    _end(_read_state())
    _clear()
    status.clear()
    console.print("The local cluster has ended. Runs are kept where they are: the output folder.")
    _print_next("transloom cluster up")


def print_status() -> None:
    if not living():
        console.print("The local cluster is not up.")
        _print_next("transloom cluster up")
        return
    from transloom.jobs.remote.client import Client

    state = _read_state()
    client = Client(load_clusters()[LOCAL])
    nodes = client.nodes()
    running = [job.submission_id for job in client.ours() if not job.status.is_terminal()]
    cpus = sum(node.get("CPU", 0) for node in nodes)
    console.print(f"Up          {len(nodes)} of {_counted(state['nodes'], 'node')}, {_counted(int(cpus), 'CPU')}")
    console.print(f"Dashboard   {state['address']} (asks for the token in {_token_file()})")
    console.print(f"Jobs        {', '.join(filter(None, running)) or 'none runs'}")
    _print_next("transloom jobs", "transloom cluster down")


def _start(state: dict[str, Any], **ports: int) -> None:
    """Starts a node, the head where it has a port for the dashboard, and puts it into the state."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    environment |= NODE_ENVIRONMENT | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(_token_file()),
        "RAY_USAGE_STATS_ENABLED": "0",
        # A job's command is `python`: the one that this command runs in.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
    # A folder of its own: in Ray's usual one the newest cluster of the machine is taken for the one that is meant, and
    # nodes that share one unpack a job's code over each other.
    folder = Path(state["folder"]) / f"node-{len(state['processes'])}"
    options = {"temp_dir": str(folder), "cpus": state["cpus"], **ports}
    with open(Path(state["folder"]) / LOG_FILE, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "transloom.jobs.ray_cluster.local_node", json.dumps(options)],
            cwd=Path(__file__).resolve().parents[2],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C and its end are not the cluster's
        )
    state["processes"].append({"pid": process.pid, "started": _started(process.pid)})
    write_json(_state_file(), state)


def _wait_until_up(state: dict[str, Any], num_nodes: int, client: Any = None) -> Any:
    """A client of the cluster, as soon as it has that many nodes."""
    from transloom.jobs.remote.client import Client

    cluster = Cluster(LOCAL, state["address"], _token_file())
    deadline = time.monotonic() + START_SECONDS
    while True:
        with suppress(UserError):
            client = client or Client(cluster)
            if len(client.nodes()) >= num_nodes:
                client.list_jobs()  # answered by a process that comes up last
                return client
        if len(_living_of(state)) < len(state["processes"]) or time.monotonic() > deadline:
            log = (Path(state["folder"]) / LOG_FILE).read_bytes().decode(errors="replace").strip()
            raise UserError(f"Ray did not start on this machine; what it said last:\n{log[-2000:]}")
        time.sleep(0.5)


def _end(state: dict[str, Any]) -> None:
    """Ends the processes of the state, nodes before the head, and whatever came from them."""
    roots = _living_of(state)
    family = [child for root in roots for child in _children(root)] + roots
    for root in reversed(roots):
        with suppress(psutil.NoSuchProcess):
            root.terminate()
    _wait_for_end(roots)
    for process in filter(_is_alive, family):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _wait_for_end(family)
    shutil.rmtree(state["folder"], ignore_errors=True)


def _wait_for_end(processes: Sequence[psutil.Process]) -> None:
    deadline = time.monotonic() + END_SECONDS
    while any(map(_is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)


def _is_alive(process: psutil.Process) -> bool:
    """Whether it still does anything: one that nobody waits for stays in the table of processes."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def living() -> list[psutil.Process]:
    """The local cluster's processes; none where it is not up."""
    return _living_of(_read_state()) if _state_file().exists() else []


def _living_of(state: dict[str, Any]) -> list[psutil.Process]:
    """The processes of the state that still are; a number that another process has by now does not count."""
    found = []
    for one in state["processes"]:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(one["pid"])
            if _started(one["pid"]) == one["started"] and _is_alive(process):
                found.append(process)
    return found


def _started(pid: int) -> int | None:
    """When a process started, in ticks since the machine did: no clock that is set anew changes it."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace").rpartition(")")[2].split()[19])
    except OSError:
        return None


def _clear() -> None:
    """Takes away what a cluster that has ended left in the user's settings."""
    if (known := load_clusters().get(LOCAL)) and known.token_file == _token_file():
        write_entry(LOCAL, None)
    _token_file().unlink(missing_ok=True)
    _state_file().unlink(missing_ok=True)


def _token_file() -> Path:
    return config_folder() / f"{LOCAL}.token"


def _state_file() -> Path:
    return config_folder() / f"{LOCAL}.json"


def _read_state() -> dict[str, Any]:
    return read_json(_state_file())


def _free_port(ports: Sequence[int]) -> int:
    """The first of the ports that is free; 0 stands for any."""
    for port in ports:
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return probe.getsockname()[1]
    raise UserError(f"ports {ports[0]} to {ports[-1]} of this machine are in use; end what uses them first")


def _print_next(*commands: str) -> None:
    from transloom.jobs.runs.summary import print_next  # imports torch

    print_next(*commands)
