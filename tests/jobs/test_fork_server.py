"""Processes forked from one that has imported already: each has the environment, folder and streams that it was asked
for, and ends as any process. No Ray but its workers' command, replaced by a script."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from transloom.jobs.ray_cluster import fork_server
from transloom.jobs.ray_cluster.fork_client import ask
from transloom.jobs.ray_cluster.fork_server import FORK_CLIENT, ForkServer, start_fork_server

REPORT = """
import json, os, signal, sys, torch
names = ("GIVEN", "OWN", "ADDED", "MALLOC_TOP_PAD_")
block = bytearray(1 << 20)  # the first growth of the heap
print(json.dumps({
    "pid": os.getpid(), "group": os.getpgid(0), "parent": os.getppid(), "folder": os.getcwd(), "argv": sys.argv,
    "environment": {name: os.environ.get(name) for name in names}, "threads": torch.get_num_threads(),
    "preloaded": "transloom.pipeline.tasks.build" in sys.modules,
    "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
}), flush=True)
print("to the errors", file=sys.stderr)
if "wait" in sys.argv:
    import time
    time.sleep(600)
if "fail" in sys.argv:
    raise RuntimeError("a worker's error")
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """One for all tests: it imports for seconds. This process has threads, and so the server is no fork of it."""
    os.environ["OWN"] = "of the server alone"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fork_server, "GPU_DEVICES", ())  # these forks use none
        server = start_fork_server()
    os.environ.pop("OWN")
    assert server
    yield server
    server.end()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "default_worker.py"
    file.write_text(REPORT)
    return file


def start(server: ForkServer, folder: Path, *words: str, seconds: float = 120, **environment: str) -> dict:
    """What a process says that is started as a raylet starts a worker."""
    usual = {"PATH": os.environ["PATH"], **environment}
    command = [sys.executable, "-IS", str(FORK_CLIENT), server.socket, "setup_worker.py", *words]
    out = folder / "out"
    with open(out, "wb") as stream, open(folder / "err", "wb") as errors:
        subprocess.run(command, cwd=folder, env=usual, stdout=stream, stderr=errors, check=True, timeout=seconds)
    deadline = time.monotonic() + seconds
    while not out.read_text().endswith("\n"):
        assert time.monotonic() < deadline, (folder / "err").read_text()
        time.sleep(0.02)
    return json.loads(out.read_text())


def context(**settings: object) -> str:
    """As Ray gives the environment of a task to a worker's command."""
    return f"--serialized-runtime-env-context={json.dumps(settings)}"


def wait_for_end(pid: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline, psutil.Process(pid)
        time.sleep(0.02)


def test_a_worker_is_a_process_as_if_started_anew(server, script, tmp_path):
    found = start(
        server,
        tmp_path,
        str(script),
        "--node-id=1",
        context(env_vars={"ADDED": "by the task", "OMP_NUM_THREADS": "1", "MALLOC_TOP_PAD_": str(1 << 28)}),
        "--language=PYTHON",
        GIVEN="by the raylet",
    )
    assert found["preloaded"]
    assert found["argv"] == [str(script), "--node-id=1"], "Ray's shim takes its own words away"
    assert found["folder"] == str(tmp_path)
    assert found["environment"] == {
        "GIVEN": "by the raylet",
        "OWN": None,
        "ADDED": "by the task",
        "MALLOC_TOP_PAD_": str(1 << 28),
    }
    assert found["threads"] == 1 and found["sigterm"]
    assert found["parent"] == server.pid
    assert found["group"] == found["pid"], "a raylet kills the groups of its ended workers"
    wait_for_end(found["pid"])
    assert (tmp_path / "err").read_text() == "to the errors\n"


def test_workers_have_each_their_number_of_threads_and_folder(server, script, tmp_path):
    for number in (3, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = start(server, folder, str(script), OMP_NUM_THREADS=str(number))
        assert (found["threads"], found["folder"]) == (number, str(folder))


def test_a_signal_and_an_error_end_the_worker_and_not_the_server(server, script, tmp_path):
    found = start(server, tmp_path, str(script), "wait")
    os.kill(found["pid"], signal.SIGTERM)
    wait_for_end(found["pid"])
    found = start(server, tmp_path, str(script), "fail")
    wait_for_end(found["pid"])
    assert "RuntimeError: a worker's error" in (tmp_path / "err").read_text()
    assert start(server, tmp_path, str(script))["parent"] == server.pid


@pytest.mark.parametrize(
    "settings",
    [{"command_prefix": ["cd", "/", "&&"]}, {"py_executable": "/usr/bin/python3"}, {"override_worker_entrypoint": "a"}],
)
def test_a_worker_of_another_interpreter_is_refused(server, script, settings):
    assert not ask(server.socket, ["setup_worker.py", str(script), context(**settings)])


def test_without_a_server_the_client_becomes_the_worker(script, tmp_path):
    code = "import json, os, sys; print(json.dumps([os.getpid(), sys.argv, os.environ['GIVEN']]))"
    shim = tmp_path / "setup_worker.py"
    shim.write_text(code)
    command = [sys.executable, "-IS", str(FORK_CLIENT), str(tmp_path / "nobody"), str(shim), str(script), "--a=1"]
    with subprocess.Popen(command, env={"GIVEN": "1"}, stdout=subprocess.PIPE, text=True) as process:
        assert json.loads(process.communicate()[0]) == [process.pid, [str(shim), str(script), "--a=1"], "1"]


def test_there_is_no_server_where_its_socket_has_no_place(monkeypatch):
    def refuse(**_: object) -> str:
        raise OSError("no room")

    monkeypatch.setattr(fork_server, "GPU_DEVICES", ())
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    assert start_fork_server() is None


def test_there_is_no_server_on_a_machine_with_a_gpu(monkeypatch, tmp_path):
    device = tmp_path / "nvidiactl"
    device.touch()
    monkeypatch.setattr(fork_server, "GPU_DEVICES", (str(device),))
    assert start_fork_server() is None


def test_the_server_ends_with_its_command(tmp_path):
    code = """
import os, sys
import transloom
from transloom.jobs.ray_cluster import fork_server
fork_server.GPU_DEVICES = ()
server = fork_server.start_fork_server()
print(server.pid, server.socket, flush=True)
os.kill(os.getpid(), 9)
"""
    environment = {**os.environ, "PYTHONPATH": str(fork_server.ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    pid, path = done.stdout.split()
    wait_for_end(int(pid))
    assert not Path(path).parent.exists()


def test_a_server_knows_its_raylet_and_refuses_the_workers_of_others():
    code = """
import os, sys, json
import transloom
from transloom.jobs.ray_cluster import fork_server
fork_server.GPU_DEVICES = ()
fork_server.MODULES, fork_server.MODULES_WITH_RAY = (), ("ray",)
server = fork_server.start_fork_server()
server.expect(1234)
from transloom.jobs.ray_cluster.fork_client import ask
answers = []
for raylet, job in (("1234", "02000000"), ("4321", "01000000"), ("1234", "01000000")):
    os.environ |= {"RAY_RAYLET_PID": raylet, "RAY_JOB_ID": job}
    answers.append(ask(server.socket, ["setup_worker.py", "/dev/null"]))
print(answers)
server.end()
print(os.path.exists(server.socket), os.path.exists(f"/proc/{server.pid}"))
"""
    environment = {**os.environ, "PYTHONPATH": str(fork_server.ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[False, False, True]", "False False"], done.stderr


def test_a_commands_server_is_a_fork_of_the_command():
    """A command has no threads, and has imported neither ray nor pyarrow, when its configuration is composed."""
    code = """
from pathlib import Path
from transloom.jobs.runs.environment import prepare_process
prepare_process()
import transloom.jobs.commands.run, transloom.jobs.commands.sweep, transloom.jobs.commands.train
from transloom.jobs.config.compose import load_config
from transloom.jobs.ray_cluster import fork_server
load_config([])
fork_server.GPU_DEVICES = ()
server = fork_server.start_fork_server()
print(Path(f"/proc/{server.pid}/cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes())
server.end()
"""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    environment["PYTHONPATH"] = str(fork_server.ROOT)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
