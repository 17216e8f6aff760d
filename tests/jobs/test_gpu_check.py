"""`make gpu-check` on a machine without a GPU, and without the libraries that it is to do without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transloom.jobs.gpu_check import DEMO, GPU, PARTS, function_of
from transloom.pipeline.files import read_json
from transloom.pipeline.gpu_check.runner import BUDGET

ROOT = Path(__file__).resolve().parents[2]
DONE_WITHOUT = ("ray", "mlflow", "hydra", "omegaconf", "datasets", "optuna")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which nobody can import Ray, MLflow or Hydra."""
    for name in DONE_WITHOUT:
        (tmp_path / "without" / name).mkdir(parents=True)
        (tmp_path / "without" / name / "__init__.py").write_text(f"raise ImportError('{name} was imported')\n")
    paths = os.pathsep.join([str(tmp_path / "without"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def call(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "transloom.jobs.gpu_check", *words]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_skipped(environment: dict[str, str], tmp_path: Path) -> None:
    done = call(environment, f"folder={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    report = read_json(tmp_path / "out" / "gpu-check.json")
    assert [part["name"] for part in report["parts"]] == [part.name for part in PARTS]
    assert {(part["status"], part["why"]) for part in report["parts"]} == {("skipped", "no GPU")}
    table = (tmp_path / "out" / "gpu-check.txt").read_text()
    assert table.count("skipped: no GPU") == len(PARTS)


@pytest.mark.slow
def test_the_demo_runs_without_ray_mlflow_and_hydra(environment: dict[str, str], tmp_path: Path) -> None:
    answer = tmp_path / "demo.json"
    done = call(environment, "part=demo", f"answer={answer}", f"work={tmp_path}", "device=cpu")
    assert done.returncode == 0, done.stderr
    record = read_json(answer)
    assert record["status"] == "passed", record["why"]


def test_what_is_mistyped_is_refused(environment: dict[str, str]) -> None:
    done = call(environment, "devise=cpu")
    assert done.returncode == 2 and "devise=cpu" in done.stderr and "Traceback" not in done.stderr
    assert call(environment, "device=tpu").returncode == 2


def test_every_part_is_known_and_all_fit_into_nine_minutes() -> None:
    assert all(callable(function_of(part)) for part in PARTS)
    names = [part.name for part in PARTS]
    assert len(set(names)) == len(names) and names[0] == GPU and names.index(DEMO) < names.index("decoding")
    assert sum(part.seconds for part in PARTS) <= BUDGET <= 540
    assert all(part.after in names[: names.index(part.name)] for part in PARTS[1:])
