"""Renames, archives and deletes runs: each a change of one folder, of which MLflow is told."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from transloom.jobs.runs.listing import run_folders
from transloom.jobs.runs.workspace import find_run, locked, user_of
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json
from transloom.pipeline.model_folder import weights_hash
from transloom.pipeline.run_folder import (
    ARCHIVE_FOLDER,
    CONFIG_FILE,
    MODEL_FOLDER,
    RUN_RECORD,
    RUNS_FOLDER,
    SWEEPS_FOLDER,
)
from transloom.pipeline.tracking.run_page import record_name, set_deleted, upload_run
from transloom.pipeline.tracking.spool import driver_records
from transloom.pipeline.train.checkpoint import lineage
from transloom.pipeline.untrusted import read_yaml

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DELETED = ".deleted-{}"  # what a run's folder is called while its files are removed


def rename_run(root: Path, name: str, new: str, tells: bool, uri: str | None) -> str:
    """Gives a run another name; returns a sentence on what became of the name in MLflow.

    Args:
        root: the output folder.
        tells: whether MLflow is told. uri: of a store in place of the run's own; None: its own.
    Raises:
        UserError: there is no such run, it is in use or a trial of a sweep, or the name is taken or no name.
    """
    folder = _own_folder(root, RUNS_FOLDER, name)
    if not NAME.fullmatch(new):
        raise UserError(f"rename: {new!r} becomes a folder's name: letters, digits, . _ - only")
    _refuse_taken(root, new)
    if any("sweep.trial" in record.get("tags", {}) for record in driver_records(folder)):
        raise UserError(f"rename: {name} is a trial of a sweep, which finds its trials by their names")
    target = folder.with_name(new)
    with _kept_from_others(folder):
        os.rename(folder, target)
        if (target / RUN_RECORD).exists():
            record_name(target, new)
    if not tells or not (target / RUN_RECORD).exists():
        return "MLflow was not told"
    try:
        upload_run(target, uri)
    except UserError as error:
        return f"MLflow will be told by `transloom sync {new}`: {error}"
    return "renamed in MLflow, too"


def archive_run(root: Path, name: str, tells: bool, uri: str | None) -> None:
    """Moves a run to `root`/archived, where no command finds it by its name; MLflow's pages show it among the deleted.

    Raises:
        UserError: there is no such run, it is in use, the name is taken there, or the store can't be reached.
    """
    _move(root, name, True, tells, uri)


def unarchive_run(root: Path, name: str, tells: bool, uri: str | None) -> None:
    """Undoes `archive_run`."""
    _move(root, name, False, tells, uri)


def refuse_move(root: Path, name: str, archives: bool) -> tuple[Path, Path]:
    """The folder of a run that can be archived or, without `archives`, taken back, and the folder's new place.

    Raises:
        UserError: there is no such run, its folder is a link, or the name is taken there.
    """
    place, other = (RUNS_FOLDER, ARCHIVE_FOLDER) if archives else (ARCHIVE_FOLDER, RUNS_FOLDER)
    folder = _own_folder(root, place, name)
    target = root / other / folder.name
    if os.path.lexists(target):
        raise UserError(f"{name}: {target} is there already; rename one of both first")
    return folder, target


def _move(root: Path, name: str, archives: bool, tells: bool, uri: str | None) -> None:
    folder, target = refuse_move(root, name, archives)
    with _kept_from_others(folder):
        _tell(folder, archives, tells, uri)
        target.parent.mkdir(exist_ok=True)
        os.rename(folder, target)


def delete_run(root: Path, name: str, tells: bool, uri: str | None) -> None:
    """Removes a run's folder, archived or not, and nothing outside it: a symbolic link in it is removed, and what it
    points to stays. MLflow's pages show the run among the deleted.

    Raises:
        UserError: see `refuse_deletion`; or the store can't be reached, and then nothing is removed.
    """
    folder = refuse_deletion(root, name)
    hidden = folder.with_name(DELETED.format(folder.name))
    with _kept_from_others(folder):
        _tell(folder, True, tells, uri)
        _remove(hidden)  # what an earlier deletion that was killed has left
        os.rename(folder, hidden)  # at once: no command meets half a run
        _remove(hidden)


def refuse_deletion(root: Path, name: str) -> Path:
    """The folder of a run that may be deleted.

    Raises:
        UserError: there is no such run, its folder is a link, it is in use, or other runs began with its weights.
    """
    archived = (root / ARCHIVE_FOLDER / name / CONFIG_FILE).exists()
    folder = _own_folder(root, ARCHIVE_FOLDER if archived else RUNS_FOLDER, name)
    if owner := user_of(folder):
        raise UserError(f"{name}: is in use by {owner}; wait for it or stop it first")
    if heirs := began_with(root, folder):
        raise UserError(f"{name}: train.initial of {', '.join(heirs)} is this run; delete these first, or archive it")
    return folder


def began_with(root: Path, folder: Path) -> list[str]:
    """The names of runs, archived runs and sweeps whose training began with the weights of a run."""
    others = [*run_folders(root), *run_folders(root, archived=True)]
    others += sorted(file.parent for file in (root / SWEEPS_FOLDER).glob(f"*/{CONFIG_FILE}"))
    return [other.name for other in others if other != folder and _is_from(other, folder)]


def _is_from(other: Path, folder: Path) -> bool:
    """Whether a run's settings, or the record of its first weights, name another run or have its model's hash."""
    initial, origin = None, {}
    with suppress(OSError, UserError, AttributeError):
        settings: Any = read_yaml(other / CONFIG_FILE, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        initial = settings.get("train", {}).get("initial")
    with suppress(OSError, UserError, ValueError, KeyError):
        origin = lineage(other)
    if any(_names(str(model), folder) for model in (initial, origin.get("model")) if model):
        return True
    with suppress(OSError, UserError, ValueError, KeyError):
        return bool(origin) and origin["sha256"] == weights_hash(folder / MODEL_FOLDER)
    return False


def _names(model: str, folder: Path) -> bool:
    """Whether a name or a path is that of a run, its folder or its model's; of a moved output folder by the end."""
    path = Path(model)
    if not path.is_absolute():
        return model == folder.name
    if path.resolve().is_relative_to(folder.resolve()):
        return True
    return not path.exists() and (folder.parent.name, folder.name) in zip(path.parts, path.parts[1:], strict=False)


def _own_folder(root: Path, place: str, name: str) -> Path:
    """The folder of a run of this output folder.

    Raises:
        UserError: there is no such run, or the folder is a link to another place.
    """
    folder = root / place / Path(name).name
    given = Path(name)
    is_elsewhere = len(given.parts) > 1 and given.absolute() != folder
    if is_elsewhere or not (folder / CONFIG_FILE).exists():
        if place == RUNS_FOLDER and not is_elsewhere:
            find_run(name, root)  # refuses, naming the latest runs
        raise UserError(f"{name}: is no run in {root / place}; give its name, and output_dir= where it is elsewhere")
    if folder.is_symlink():
        raise UserError(f"{name}: {folder} is a link to {folder.resolve()}; move or remove that yourself")
    return folder


def _refuse_taken(root: Path, name: str) -> None:
    for place in (RUNS_FOLDER, ARCHIVE_FOLDER):
        if os.path.lexists(root / place / name):
            raise UserError(f"rename: there is a run {name} in {root / place} already; choose another name")


@contextmanager
def _kept_from_others(folder: Path) -> Iterator[None]:
    """
    Raises:
        UserError: another process uses the run.
    """
    if owner := user_of(folder):
        raise UserError(f"{folder.name}: is in use by {owner}; wait for it or stop it first")
    with locked(folder):
        yield


def _tell(folder: Path, deleted: bool, tells: bool, uri: str | None) -> None:
    if tells and (folder / RUN_RECORD).exists() and read_json(folder / RUN_RECORD).get("run_id"):
        set_deleted(folder, deleted, uri)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
