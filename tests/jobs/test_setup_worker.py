"""The project's start of a worker does what Ray's own does, without importing ray."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from transloom.jobs.ray_cluster.local_node import SETUP_WORKER
from transloom.jobs.ray_cluster.patches import RAY_SETUP_WORKER, _own_raylet

CONTEXT = {
    "command_prefix": ["cd", "'a folder'", "&&"],
    "env_vars": {"PLAIN": "it's 1", "LONGER": "${GIVEN}/more", "WITHOUT": "${NOT_THERE}x", "GIVEN": "new"},
    "py_executable": f"{sys.executable} -B",
    "override_worker_entrypoint": None,
    "java_jars": [],
}


def started(setup: Path, folder: Path, *words: str, **environment: str) -> dict[str, Any]:
    """What the worker's script finds: its words, its folder, its variables, the interpreter's flag -B."""
    script = folder / "default_worker.py"
    script.write_text(
        "import json, os, sys\n"
        "names = ('PLAIN', 'LONGER', 'WITHOUT', 'GIVEN')\n"
        "variables = {name: os.environ.get(name) for name in names}\n"
        "print(json.dumps([sys.argv[1:], os.getcwd(), variables, sys.flags.dont_write_bytecode, os.getpid()]))\n"
    )
    command = [sys.executable, str(setup), str(script), "--node-ip-address=127.0.0.1", "two words; $GIVEN", *words]
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with subprocess.Popen(
        command, cwd=folder, env=usual | {"GIVEN": "old"} | environment, stdout=subprocess.PIPE, text=True
    ) as process:
        said, _ = process.communicate(timeout=300)
    *seen, pid = json.loads(said)
    assert pid == process.pid
    return dict(zip(("words", "folder", "variables", "without_bytecode"), seen, strict=True))


@pytest.fixture
def without_ray(tmp_path: Path) -> str:
    """An import path on which ray can't be imported."""
    (tmp_path / "path" / "ray").mkdir(parents=True)
    (tmp_path / "path" / "ray" / "__init__.py").write_text("raise RuntimeError('ray is imported')\n")
    return str(tmp_path / "path")


def test_a_worker_is_started_as_ray_itself_starts_it(tmp_path, without_ray):
    (tmp_path / "a folder").mkdir()
    words = (f"--serialized-runtime-env-context={json.dumps(CONTEXT)}", "--language=PYTHON", "--runtime-env-hash=7")
    found = started(SETUP_WORKER, tmp_path, *words, PYTHONPATH=without_ray)
    assert found == started(RAY_SETUP_WORKER, tmp_path, *words)
    assert found == {
        "words": ["--node-ip-address=127.0.0.1", "two words; $GIVEN", "--runtime-env-hash=7"],
        "folder": str(tmp_path / "a folder"),
        "variables": {"PLAIN": "it's 1", "LONGER": "old/more", "WITHOUT": "x", "GIVEN": "new"},
        "without_bytecode": 1,
    }


def test_without_a_runtime_environment_nothing_changes(tmp_path, without_ray):
    found = started(SETUP_WORKER, tmp_path, "--language=PYTHON", PYTHONPATH=without_ray)
    assert found["words"] == ["--node-ip-address=127.0.0.1", "two words; $GIVEN"]
    assert found["folder"] == str(tmp_path) and found["variables"]["GIVEN"] == "old"


def test_a_worker_of_another_language_is_left_to_ray(tmp_path, without_ray):
    """Ray's own script is found where ray is, and not by importing ray."""
    own = Path(without_ray) / "ray" / "_private" / "workers" / "setup_worker.py"
    own.parent.mkdir(parents=True)
    own.write_text("import sys; print(sys.argv[1:])")
    command = [sys.executable, str(SETUP_WORKER), "-Da=b", "--language=JAVA"]
    said = subprocess.run(command, env=os.environ | {"PYTHONPATH": without_ray}, capture_output=True, text=True)
    assert said.stdout == "['-Da=b', '--language=JAVA']\n", said.stderr


def test_a_raylet_of_ones_own_starts_workers_by_it(monkeypatch):
    monkeypatch.setattr("transloom.jobs.ray_cluster.patches.raylet.persist_port", lambda *_: None)
    command = [
        "raylet",
        "--session_dir=/tmp/s",
        "--node_id=1",
        "--node_ip_address=127.0.0.1",
        f"--python_worker_command={sys.executable} {RAY_SETUP_WORKER} /ray/worker.py --runtime-env-agent-port=0",
        "--runtime_env_agent_command=python agent.py",
    ]
    (found,) = [word for word in _own_raylet(command, None) if word.startswith("--python_worker_command=")]
    assert found.startswith(f"--python_worker_command={sys.executable} {SETUP_WORKER} /ray/worker.py ")
    assert RAY_SETUP_WORKER.exists()
