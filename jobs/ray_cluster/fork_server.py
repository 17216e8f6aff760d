"""The fork server: a process that has imported what the workers of a command's own Ray import, and forks them. A new
Python process would import for 5 to 10 s of CPU, and Ray starts two for each worker, one after the other.

The command starts the server before it imports ray, as a fork of itself if it has no threads. The raylet runs
fork_client.py in a worker's place. The server has no threads and runs neither Ray nor an operation of torch, so that a
fork is a sound beginning of a process. Only on machines without GPUs: no fork can use a GPU that was looked at before.

_raylet.so reads Ray's variables when it is imported, the raylet's and the job's ID among them. So the server imports
ray only after `expect` has told it these, and refuses workers of any others.
"""

import atexit
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from transloom.jobs.ray_cluster.fork_client import ACCEPTED, SIZE_BYTES
from transloom.pipeline.search_path import ROOT

FORK_CLIENT = Path(__file__).with_name("fork_client.py")
MODULES = (
    "torch.distributed",
    "transloom.model.build",
    "transloom.pipeline.tasks.build",
    "transloom.pipeline.train.engine",
    "transloom.pipeline.train.loop",
)
# When the server knows its raylet. pyarrow comes after ray, as in a worker that starts anew: both have libraries of the
# same names, and in the other order about one worker in ten aborts at its end.
MODULES_WITH_RAY = ("ray._private.workers.default_worker", "ray.train.torch", "transloom.jobs.training.worker")
NOT_BEFORE_RAY = ("ray", "pyarrow")
READ_AT_IMPORT = ("RAY_RAYLET_PID", "RAY_JOB_ID", "RAY_AUTH_MODE")
FIRST_JOB = "01000000"  # the command is the first and only job of its own Ray
# To be set before numpy and pyarrow are imported: their libraries would start threads.
WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
# mallopt's numbers of what glibc reads from the environment when a process starts
MALLOPT = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_TOP_PAD_": -2, "MALLOC_MMAP_MAX_": -4}
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")  # NVIDIA's and AMD's
REQUEST_SECONDS = 10.0


@dataclass(frozen=True)
class ForkServer:
    """The command's end of its server."""

    socket: str
    pid: int
    orders: int  # the server reads them, and ends where this is closed

    def expect(self, raylet: int) -> None:
        """Tells the server the process whose workers it will fork; it imports ray then."""
        settings = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
        known = settings | {"RAY_RAYLET_PID": str(raylet), "RAY_JOB_ID": FIRST_JOB}
        with suppress(OSError):  # an ended server: the workers start without it
            os.write(self.orders, json.dumps(known).encode() + b"\n")

    def end(self) -> None:
        os.close(self.orders)
        with suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)  # busy with imports, perhaps
            os.waitpid(self.pid, 0)
        shutil.rmtree(Path(self.socket).parent, ignore_errors=True)


def start_fork_server(modules: Sequence[str] = ()) -> ForkServer | None:
    """Starts a server that imports `modules` after all others. None where it can't start, or forks are not sound."""
    if sys.platform != "linux" or any(os.path.exists(device) for device in GPU_DEVICES):
        return None
    try:
        folder = tempfile.mkdtemp(prefix="transloom-fork-", dir="/tmp")  # of this user alone
    except OSError:
        return None
    reads, orders = os.pipe()
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path := f"{folder}/socket")
            listener.listen(128)
            return ForkServer(path, _start(listener, reads, orders, modules), orders)
    except OSError:  # no room for another process
        os.close(orders)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    finally:
        os.close(reads)


def _start(listener: socket.socket, reads: int, orders: int, modules: Sequence[str]) -> int:
    """Starts the server's process, and returns its number: a fork of this one, or else one that imports all anew."""
    if not _can_fork() or sys.modules.keys() & NOT_BEFORE_RAY:
        words = ["-m", "transloom.jobs.ray_cluster.fork_server", str(listener.fileno()), str(reads), *modules]
        passed = (listener.fileno(), reads)
        return subprocess.Popen([sys.executable, *words], cwd=ROOT, pass_fds=passed, process_group=0).pid
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    pid = os.fork()
    if pid == 0:
        os.close(orders)
        atexit._clear()  # what the command does at its end
        _run(lambda: _serve(listener, reads, modules))
    return pid


def _can_fork() -> bool:
    return len(os.listdir("/proc/self/task")) == 1


def _serve(listener: socket.socket, orders: int, modules: Sequence[str]) -> None:
    """Forks workers until nobody holds the other end of `orders`."""
    _begin_process()
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # the command's may be pipes that somebody reads to their end
        os.dup2(nothing, stream)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # leaves no zombies
    os.environ |= {**WITHOUT_THREADS, "DS_ACCELERATOR": "cpu"}  # which deepspeed reads when it is imported
    _import(MODULES)
    while True:
        ready, _, _ = select.select([orders, listener], [], [])
        if orders in ready:
            order = os.read(orders, 1 << 16)
            if not order:
                shutil.rmtree(Path(listener.getsockname()).parent, ignore_errors=True)
                return
            os.environ |= json.loads(order)
            with suppress(Exception):  # Ray's private modules differ from version to version
                _draw_no_ids()
            _import((*MODULES_WITH_RAY, *modules))
        elif listener in ready:
            with suppress(OSError, ValueError):
                _answer(listener)


def _import(names: Sequence[str]) -> None:
    for name in names:
        with suppress(Exception):  # the worker that needs the module will tell
            importlib.import_module(name)
    gc.freeze()  # a fork's collector leaves these objects alone, so that their memory stays shared


def _draw_no_ids() -> None:
    """Imports ray, and has the IDs of actor classes, which are drawn when modules with such classes are imported, come
    from the operating system. Drawn by Ray, they would begin its generator here, and all forks would draw the same IDs:
    of two workers that started within a millisecond one aborted, since both had put the same object."""
    import ray.actor

    class Ids:
        @staticmethod
        def from_random() -> ray.ActorClassID:
            return ray.ActorClassID(os.urandom(ray.ActorClassID.size()))

    ray.actor.ActorClassID = Ids  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]


def _answer(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(REQUEST_SECONDS)
        head, streams, _, _ = socket.recv_fds(connection, SIZE_BYTES, 3)
        try:
            data = bytearray()
            while head and len(data) < int(head) and (more := connection.recv(1 << 16)):
                data += more
            request = json.loads(data)
            if not _can_fork() or _needs_another_process(request):
                return
            pid = os.fork()
            if pid == 0:
                listener.close()
                connection.close()
                _run(lambda: _be_worker(request, streams))
            connection.sendall(ACCEPTED)
        finally:
            for stream in streams:
                os.close(stream)


def _needs_another_process(request: dict[str, Any]) -> bool:
    """Whether the worker is of another raylet or job, or not of this interpreter."""
    if "ray" in sys.modules and any(request["environment"].get(key) != os.environ.get(key) for key in READ_AT_IMPORT):
        return True
    context = _context(request["command"])
    others = context.get("command_prefix") or context.get("override_worker_entrypoint")
    return bool(others) or context.get("py_executable", sys.executable) != sys.executable


def _context(command: Sequence[str]) -> dict[str, Any]:
    """The environment of a worker's task, as Ray gives it to a worker's command."""
    given = [word.partition("=")[2] for word in command if word.startswith("--serialized-runtime-env-context=")]
    return json.loads(given[0]) if given else {}


def _run(function: Any) -> NoReturn:
    """Runs the function as all that a forked process does, with the end of a Python process."""
    code = 1
    try:
        function()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        with suppress(Exception):
            traceback.print_exc()
    with suppress(BaseException):
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
    with suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _begin_process() -> None:
    """Leaves the process group, and forgets what the process before the fork did at signals."""
    os.setpgid(0, 0)  # a raylet kills the groups of its ended workers
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _be_worker(request: dict[str, Any], streams: Sequence[int]) -> None:
    """Does in this fork what Ray's command of a worker does: setup_worker.py, then default_worker.py."""
    import runpy

    _begin_process()
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(i, "rw"[i > 0], buffering=1, closefd=False) for i in range(3))
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    from ray._private.utils import update_envs

    update_envs(_context(request["command"]).get("env_vars", {}))
    _set_allocator()
    _set_threads()
    sys.argv = [word for word in request["command"][1:] if not word.startswith(("--serialized-runtime", "--language="))]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _set_allocator() -> None:
    import ctypes

    libc = ctypes.CDLL(None)
    for name, number in MALLOPT.items():
        if name in os.environ:
            value = int(os.environ[name])
            libc.mallopt(number, value if value < 1 << 31 else -1)  # -1, the largest size there is


def _set_threads() -> None:
    """Gives torch the number of threads that it reads from OMP_NUM_THREADS when it is imported: now where that is set,
    else when Ray sets it, before the first task."""
    import ray._private.utils
    import torch
    from ray import _raylet

    usual = ray._private.utils.set_omp_num_threads_if_unset

    def set_both() -> bool:
        is_set = usual()
        if is_set:
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        return is_set

    ray._private.utils.set_omp_num_threads_if_unset = _raylet.set_omp_num_threads_if_unset = set_both  # pyright: ignore
    if number := os.environ.get("OMP_NUM_THREADS", ""):
        with suppress(ValueError):
            torch.set_num_threads(int(number))


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:3]]
    _run(lambda: _serve(socket.socket(fileno=given[0]), given[1], sys.argv[3:]))
