"""What a training talks to: nodes of Ray, an MLflow server, a server that fails."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
from command import MARK, ROOT

from transloom.jobs.ray_cluster.local_node import NODE_ENVIRONMENT
from transloom.pipeline.tracking.address import ui_command

START_SECONDS = 300.0
END_SECONDS = 60.0
TESTS = ROOT / "tests"


def marked(mark: str, title: str = "") -> list[psutil.Process]:
    """The processes with this mark in their environment whose command line begins with `title`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark and " ".join(process.cmdline()).startswith(title):
                found.append(process)
    return found


def end_all(mark: str) -> None:
    """SIGKILL to all processes with this mark."""
    while found := [one for one in marked(mark) if is_alive(one)]:
        for process in found:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class NotStarted(AssertionError):
    """A node of Ray did not come up."""


class Node:
    """A node of a cluster, in a process of its own."""

    def __init__(self, folder: Path, environment: dict[str, str], cpus: int, gcs_address: str | None = None) -> None:
        self.mark = uuid.uuid4().hex
        ready = folder / f"{self.mark[:8]}.json"
        options: dict[str, Any] = {"temp_dir": str(folder / self.mark[:6]), "cpus": cpus, "ready": str(ready)}
        if gcs_address:
            options["gcs_address"] = gcs_address
        log = folder / f"{self.mark[:8]}.log"
        with open(log, "wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "chaos.node", json.dumps(options)],
                cwd=ROOT,
                env=environment | {MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not ready.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                end_all(self.mark)
                raise NotStarted(f"a node of Ray did not start: {log.read_bytes().decode(errors='replace')[-2000:]}")
            time.sleep(0.1)
        about = json.loads(ready.read_text())
        self.node_id, self.address, self.pids = about["node_id"], about["address"], about["pids"]

    def workers(self) -> list[psutil.Process]:
        """The training's workers on this node."""
        return marked(self.mark, "ray::RayTrainWorker")

    def kill(self, *kinds: str) -> None:
        """SIGKILL to the node's raylet, or to others of its own processes."""
        for kind in kinds or ("raylet",):
            with suppress(psutil.NoSuchProcess):  # a drained node ends by itself
                psutil.Process(self.pids[kind]).kill()

    def left_over(self) -> list[str]:
        """The processes of a killed node that are left a minute later; they are then ended."""
        deadline = time.monotonic() + END_SECONDS
        while (left := [one for one in marked(self.mark) if is_alive(one)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        names = [f"{one.pid} {' '.join(one.cmdline())[:60]}" for one in left if is_alive(one)]
        end_all(self.mark)
        self.process.wait()
        return names


class Cluster:
    """A head without CPUs, where the driver is, and nodes of one CPU each; all ask for a token."""

    def __init__(self, folder: Path, num_nodes: int) -> None:
        token = secrets.token_hex(16)
        # A command needs the nodes' environment, too: without it Ray takes 127.0.0.1 for the machine's own address.
        self.environment = NODE_ENVIRONMENT | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        own |= self.environment
        own |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)]), "RAY_USAGE_STATS_ENABLED": "0"}
        # A node that answers no more is dead after five seconds, not thirty.
        own |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5"}
        self._own, self._folder = own, folder
        self.head = self._start(0)
        self.nodes: list[Node] = []
        try:
            for _ in range(num_nodes):
                self.add()
        except BaseException:
            self.end()
            raise

    @property
    def address(self) -> str:
        return self.head.address

    def add(self) -> Node:
        self.nodes.append(self._start(1, self.address))
        return self.nodes[-1]

    def _start(self, cpus: int, gcs_address: str | None = None) -> Node:
        """At a second or third attempt where need be: Ray gives its own processes 15 s, too few for a busy machine."""
        for _ in range(2):
            with suppress(NotStarted):
                return Node(self._folder, self._own, cpus, gcs_address)
        return Node(self._folder, self._own, cpus, gcs_address)

    def workers(self) -> list[psutil.Process]:
        return [worker for node in self.nodes for worker in node.workers()]

    def drain(self, node: Node, seconds: int = 120) -> None:
        """Tells Ray that the node is about to go, as a cloud that preempts it does."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.address]
        command += ["--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message", "preempted", "--deadline-remaining-seconds", str(seconds)]
        done = subprocess.run(command, env=self._own, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"ray drain-node: {done.stdout}{done.stderr}"

    def end(self) -> None:
        for node in [*self.nodes, self.head]:
            end_all(node.mark)
            node.process.wait()
        self.nodes.clear()


@contextmanager
def cluster(num_nodes: int) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="tl-", dir="/tmp"))  # short: a socket's path has up to 107 characters
    try:
        found = Cluster(folder, num_nodes)
        try:
            yield found
        finally:
            found.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MlflowServer:
    """A real `mlflow server` on loopback, to be killed and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.log, self.store = free_port(), folder / "server.log", f"sqlite:///{folder}/server.db"
        self.command, environment = ui_command(self.store, folder / "artifacts", port=self.port)
        own = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        self.environment = own | environment
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=30).close()
                return
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()[-2000:]
            time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def mlflow_server(folder: Path, is_up: bool = True) -> Iterator[MlflowServer]:
    server = MlflowServer(folder)
    try:
        if is_up:
            server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def failing_server(seconds: float) -> Iterator[str]:
    """The address of a server that answers 500 after so many seconds."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            over.wait(seconds)
            self.send_error(500)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
