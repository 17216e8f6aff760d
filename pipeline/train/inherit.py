"""Starts a run from another run's weights, by copying that run's checkpoint and snapshots into the new folder."""

import os
import shutil
from pathlib import Path

from transloom.pipeline.files import sealed_folder
from transloom.pipeline.run_folder import CHECKPOINTS_FOLDER, WEIGHTS_FOLDER
from transloom.pipeline.train.checkpoint import LATEST, list_weights, point_to, remove_unfinished, snapshot_path, verify


def inherit(parent: Path, step: int, folder: Path) -> None:
    """Puts a run's checkpoint of `step`, and its snapshots up to `step`, into another run's folder. The other run
    resumes from them, with the optimizer, the place in the data and the validations so far. A run that already has the
    checkpoint, from before a kill, is not changed.

    Args:
        parent: the folder of the run to copy from. folder: of the run that resumes.
    Raises:
        UserError: the checkpoint is missing or damaged.
    """
    own = snapshot_path(folder / CHECKPOINTS_FOLDER, step)
    if (folder / CHECKPOINTS_FOLDER / LATEST).exists():
        return
    checkpoint = snapshot_path(parent / CHECKPOINTS_FOLDER, step)
    verify(checkpoint)
    for unfinished in (folder / WEIGHTS_FOLDER, folder / CHECKPOINTS_FOLDER):
        remove_unfinished(unfinished)
    for snapshot in list_weights(parent / WEIGHTS_FOLDER):  # for the average of the last or of the best
        if snapshot.name <= own.name:
            _copy(snapshot, folder / WEIGHTS_FOLDER / snapshot.name)
    _copy(checkpoint, own)
    point_to(own)


def _copy(source: Path, target: Path) -> None:
    """Links the files where the disk can, else copies them. Files of a finished checkpoint or snapshot are never
    rewritten, only removed."""
    if target.exists():
        return
    with sealed_folder(target) as folder:
        for path in source.iterdir():
            try:
                os.link(path, folder / path.name)
            except OSError:
                shutil.copyfile(path, folder / path.name)
