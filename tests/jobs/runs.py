"""What the tests of whole runs look at: folders, losses, checkpoints, MLflow's runs."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from transloom.pipeline.tracking.spool import read_points

STEPS = 150  # of TINY, with a checkpoint and a validation every 50
REPEATABLE = ("train/loss", "train/grad_norm", "train/learning_rate", "train/target_tokens", "train/epoch")
VALIDATION = ("validation/loss", "validation/bleu", "validation/chrf")


def folder_of(place: Path, name: str) -> Path:
    return place / "outputs" / "runs" / name


def trajectory(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of what every attempt at the same training repeats exactly, as often as it was logged."""
    points = read_points(folder)
    return {name: sorted((step, value) for key, step, value, _ in points if key == name) for name in REPEATABLE}


def losses(folder: Path) -> dict[int, float]:
    return dict(trajectory(folder)["train/loss"])


def checkpoint_state(folder: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """Weights and optimizer state."""
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / "state.safetensors")


def differing(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not bit-identical."""
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if name not in found or not torch.equal(found[name], expected[name])]


def mlflow_runs(place: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place}/outputs/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "transloom"]
    return client.search_runs([experiment.experiment_id])
