"""A user's own model.py, pipeline.py and jobs/ in the current folder never stand in the way of the project's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT

from transloom.pipeline.search_path import search_environment
from transloom.pipeline.tracking.address import ui_command

# As the command `transloom` does: started elsewhere, without the current folder in its search path.
COMMAND = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
from transloom.jobs.ray_cluster.session import map_over_cluster, ray_session
from transloom.jobs.config.schema import ClusterConfig
from transloom.model.build import architecture_of
from transloom.model.config import RecurrentConfig, TransformerConfig
with ray_session(ClusterConfig()):
    print(list(map_over_cluster(architecture_of, [TransformerConfig(), RecurrentConfig()])))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of somebody's with modules that can't be imported."""
    current = tmp_path / "mine"
    for name in ("model.py", "pipeline.py", "jobs/__init__.py", "conf/__init__.py"):
        (current / name).parent.mkdir(parents=True, exist_ok=True)
        (current / name).write_text(f"raise RuntimeError('{name} of the user')\n")
    return current


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PYTHON"))}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=usual | environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_workers_import_what_the_command_imports(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "bin" / "transloom"
    script.parent.mkdir()
    script.write_text(COMMAND)
    found = run(folder, str(script))
    assert found.stdout.strip() == "['transformer', 'lstm']", found.stderr


def test_python_m_jobs_takes_the_packages_beside_it(folder: Path) -> None:
    (folder / "jobs" / "__init__.py").unlink()
    (folder / "jobs").rmdir()  # else Python itself takes this one
    found = run(folder, "-m", "transloom.jobs", "run", "--cfg", "job", PYTHONPATH=str(ROOT))
    assert found.returncode == 0, found.stderr
    assert "target_language: de" in found.stdout


def test_processes_that_are_started_with_python_m_take_the_projects_packages(folder: Path) -> None:
    code = "import transloom.model; print(transloom.model.__file__)"
    (folder / "show.py").write_text("raise RuntimeError('show.py of the user')\n")
    found = run(folder, "-c", code, **search_environment())
    assert found.stdout.strip() == str(ROOT / "transloom" / "model" / "__init__.py"), found.stderr
    assert "No module named show" in run(folder, "-m", "show", **search_environment()).stderr
    _, environment = ui_command(f"sqlite:///{folder}/mlflow.db", folder)
    assert environment["UVICORN_APP_DIR"] == str(ROOT)
    assert environment | search_environment() == environment
