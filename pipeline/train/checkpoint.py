"""Checkpoints, which exist only once their manifest verifies, and snapshots, which hold the weights alone.

    <folder>/step_00001000/   state.safetensors trainer.json manifest.json      (a checkpoint)
    <folder>/step_00001000/   weights.safetensors manifest.json                 (a snapshot)
    <folder>/latest           the newest folder's name, for people: no code trusts it

Files are written into a temporary folder, which is renamed once all files are on the disk. The manifest holds the size
and SHA-256 of every file, and its own SHA-256. No file is a pickle, so loading can't run code.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from transloom.pipeline.disk import READ_ONLY, REFUSED, disk_trouble, free_space
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import MANIFEST, atomic_write, damaged_files, measured_files, read_json, sealed_folder
from transloom.pipeline.ranks import on_rank_zero
from transloom.pipeline.run_folder import INITIAL_FOLDER
from transloom.pipeline.train.optimizer import EngineState, without_frozen
from transloom.pipeline.untrusted import inside, read_small

STATE = "state.safetensors"
TRAINER = "trainer.json"
WEIGHTS = "weights.safetensors"
LATEST = "latest"
STEP_FOLDER = re.compile(r"step_(\d{8,})")

KEEP_ALL = 1 << 30  # checkpoints

log = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path,
    step: int,
    engine_state: EngineState,
    trainer_state: Mapping[str, Any],
    about: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes a checkpoint and keeps the `keep` newest; for rank 0 alone, which has the engine's tensors. Frozen weights
    are left out: they stay those that the training began with, which lie in the run's folder.

    Checkpoints of later steps are removed: the run went back to a step before them.

    Args:
        trainer_state: JSON values that the loop needs to go on.
        about: JSON values for the manifest: the writer and the configuration.
    Raises:
        UserError: the files can't be written, above all for lack of space. Earlier checkpoints stay.
    """

    def write(temporary: Path) -> None:
        save_file(without_frozen(engine_state.tensors), temporary / STATE)
        trainer = {"engine": engine_state.scalars, "trainer": dict(trainer_state)}
        (temporary / TRAINER).write_bytes(_json_bytes(trainer))

    path = _install(folder, step, write, about)
    prune(folder, keep, step)
    return path


def load_checkpoint(path: Path) -> tuple[EngineState, dict[str, Any]]:
    """The engine's state and the loop's state.

    Raises:
        UserError: a file is missing or damaged.
    """
    verify(path)
    return _load_verified(path)


def resume(folder: Path) -> tuple[EngineState | None, dict[str, Any] | None]:
    """The newest checkpoint that verifies: the engine's state on rank 0, which alone reads it, and the loop's state on
    every rank; None where no checkpoint was ever finished. A collective.

    Raises:
        UserError: on every rank, as newest_checkpoint.
    """
    engine_state = None

    def read() -> dict[str, Any] | None:
        nonlocal engine_state
        path = newest_checkpoint(folder)
        if path is None:
            return None
        engine_state, trainer = _load_verified(path)
        return trainer

    trainer_state = on_rank_zero(read)
    return engine_state, trainer_state


def _load_verified(path: Path) -> tuple[EngineState, dict[str, Any]]:
    try:
        trainer = read_json(path / TRAINER)
        return EngineState(load_file(path / STATE), trainer["engine"]), trainer["trainer"]
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold a checkpoint: {error}") from error


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that verifies; None where none was ever finished.

    Raises:
        UserError: there are checkpoints and none verifies: a training never begins anew unasked.
    """
    damaged = []
    for path in reversed(_steps(folder)):
        try:
            verify(path)
        except UserError as error:
            log.warning("%s. Going back to the checkpoint before it", error)
            damaged.append(path.name)
        else:
            return path
    if damaged or (folder / LATEST).exists():
        found = f"damaged: {', '.join(damaged)}" if damaged else f"gone, though the file {LATEST} names one"
        raise UserError(
            f"no checkpoint in {folder} can be used; {found}. Restore one from a copy, or move the folder away to "
            "start again from step 0"
        )
    return None


def good_checkpoint(folder: Path, avoided: Collection[Sequence[int]]) -> Path | None:
    """The newest checkpoint that verifies and was not saved right after a skipped step; None where there is none.

    Args:
        avoided: places [epoch, index] in the data whose checkpoints are used only without an older checkpoint.
    """
    second_choice = None
    for path in reversed(_steps(folder)):
        try:
            verify(path)
            trainer = json.loads((path / TRAINER).read_bytes())["trainer"]
        except UserError as error:
            log.warning("%s. Going back to the checkpoint before it", error)
            continue
        if trainer["skipped_in_a_row"]:  # saved amid skipped steps, when the run was asked to stop
            continue
        if [trainer["epoch"], trainer["index"]] not in avoided:
            return path
        second_choice = second_choice or path
    return second_choice


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint or snapshot.

    Raises:
        UserError: the manifest is missing or damaged.
    """
    file = path / MANIFEST
    try:
        data = read_small(inside(path, MANIFEST))
        manifest = json.loads(data)
        intact = data == _sealed_manifest({key: value for key, value in manifest.items() if key != "sha256"})
        intact = intact and all({"bytes", "sha256"} <= one.keys() for one in manifest["files"].values())
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        intact = False
        manifest = {}
    if not intact:
        raise UserError(f"{file} is missing or damaged")
    return manifest


def verify(path: Path) -> dict[str, Any]:
    """The manifest, once every file matches its size and hash.

    Raises:
        UserError: naming the first file that is missing or damaged.
    """
    manifest = read_manifest(path)
    for _, damage in damaged_files(path, manifest["files"]):
        raise UserError(damage)
    return manifest


def prune(folder: Path, keep_last: int, newest_step: int, keep: Collection[int] = ()) -> None:
    """Removes the steps after newest_step, and all but the `keep_last` newest and those in `keep`."""
    paths = _steps(folder)
    past = [path for path in paths if _step_of(path) <= newest_step]
    kept = {*past[-keep_last:], *(path for path in past if _step_of(path) in keep)}
    for path in paths:
        if path not in kept:
            _remove(path)


def snapshot_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def save_weights(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    *,
    keep_last: int,
    keep: Collection[int] = (),
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a snapshot; then removes later steps and all but the `keep_last` newest and those in `keep`.

    Raises:
        UserError: as save_checkpoint.
    """
    path = _install(folder, step, lambda temporary: save_file(dict(weights), temporary / WEIGHTS), about or {})
    prune(folder, keep_last, step, keep)
    return path


def lineage(run_folder: Path) -> dict[str, str]:
    """The model that a run's training began with, `train.initial`: its folder, and the SHA-256 of its weights. Empty
    for a training that began with random weights."""
    path = snapshot_path(run_folder / INITIAL_FOLDER, 0)
    return read_manifest(path)["initial"] if path.exists() else {}


def list_weights(folder: Path) -> list[Path]:
    """The snapshots, oldest first."""
    return _steps(folder)


def list_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints or snapshots, ascending."""
    return [_step_of(path) for path in _steps(folder)]


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a snapshot, fp32.

    Raises:
        UserError: a file is missing or damaged.
    """
    verify(path)
    try:
        return load_file(path / WEIGHTS)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} does not hold weights: {error}") from error


def average_weights(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of snapshots (section 6.1 of the paper), summed in fp64, given in fp32.

    Raises:
        UserError: a file is missing or damaged, or the snapshots are of different models.
    """
    if not paths:
        raise ValueError("paths: no snapshots to average")
    sums: dict[str, Tensor] = {}
    for path in paths:
        weights = load_weights(path)
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        if sums and shapes != {name: tensor.shape for name, tensor in sums.items()}:
            raise UserError(f"can't average {path} with {paths[0]}: they are of different models")
        for name, tensor in weights.items():
            sums[name] = sums[name] + tensor if name in sums else tensor.to(torch.float64)
    return {name: (total / len(paths)).to(torch.float32) for name, total in sums.items()}


def _steps(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if STEP_FOLDER.fullmatch(path.name)), key=_step_of)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _install(folder: Path, step: int, write: Callable[[Path], None], about: Mapping[str, Any]) -> Path:
    final = snapshot_path(folder, step)
    try:
        remove_unfinished(folder)
        with sealed_folder(final) as temporary:  # a run that went back writes a step again
            write(temporary)
            _seal(temporary, {**about, "step": step})
        point_to(final)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno in (READ_ONLY, *REFUSED):
            raise UserError(disk_trouble(OSError(error.errno, error.strerror, str(final)))) from error
        raise UserError(
            f"{final} could not be written: {error}. What was written before it is kept. Free some space on that "
            f"disk ({free_space(folder)}), or set output_dir to a folder on a larger one, then give the same command "
            "again to go on"
        ) from error
    return final


def _seal(folder: Path, about: Mapping[str, Any]) -> None:
    (folder / MANIFEST).write_bytes(_sealed_manifest({**about, "files": measured_files(folder)}))


def remove_unfinished(folder: Path) -> None:
    """Removes the unfinished folders of a killed writer; a run has one writer at a time."""
    for left in folder.glob("step_*.tmp*"):
        shutil.rmtree(left, ignore_errors=True)


def point_to(path: Path) -> None:
    """Names a checkpoint or snapshot as the latest."""
    with atomic_write(path.with_name(LATEST)) as file:
        file.write(f"{path.name}\n".encode())


def _sealed_manifest(body: dict[str, Any]) -> bytes:
    """The manifest's only valid bytes, which include its own hash."""
    return _json_bytes({**body, "sha256": hashlib.sha256(_json_bytes(body)).hexdigest()})


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=2).encode() + b"\n"


def _remove(path: Path) -> None:
    """Removes a step's folder; a kill half-way leaves no folder that looks damaged."""
    doomed = path.with_name(f"{path.name}.tmp-removed")
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
