"""A run that goes on with the weights of another one: its checkpoint and snapshots, in the new run's own folder."""

import os
import shutil
from pathlib import Path

from pipeline.files import sealed_folder
from pipeline.run_folder import CHECKPOINTS_FOLDER, WEIGHTS_FOLDER
from pipeline.train.checkpoint import LATEST, list_weights, point_to, remove_unfinished, snapshot_path, verify


def inherit(parent: Path, step: int, folder: Path) -> None:
    """Puts a run's checkpoint of `step`, and its snapshots up to there, into the folder of another run, which goes on
    from them as from its own: optimizer, place in the data and validations so far included. A run that has the
    checkpoint already, from before a kill, is left as it is.

    Args:
        parent, folder: of the two runs.
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
    for snapshot in list_weights(
        parent / WEIGHTS_FOLDER
    ):  # which the average of the last ones, and of the best, asks for
        if snapshot.name <= own.name:
            _copy(snapshot, folder / WEIGHTS_FOLDER / snapshot.name)
    _copy(checkpoint, own)
    point_to(own)


def _copy(source: Path, target: Path) -> None:
    """Files are linked where the disk can do that: whatever is in a finished checkpoint or snapshot is never written
    again, only removed."""
    if target.exists():
        return
    with sealed_folder(target) as folder:
        for path in source.iterdir():
            try:
                os.link(path, folder / path.name)
            except OSError:
                shutil.copyfile(path, folder / path.name)
