"""Divergence: the batches of skipped steps are kept for inspection, and a training can go back to a checkpoint and
continue with the data in another order."""

import logging
import math
import statistics
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from torch import Tensor

from transloom.pipeline.data.batches import Step
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json, write_json
from transloom.pipeline.ranks import gather, on_rank_zero, rank, world_size
from transloom.pipeline.run_folder import CHECKPOINTS_FOLDER, ROLLBACKS_FILE, SKIPPED_FOLDER
from transloom.pipeline.train.checkpoint import KEEP_ALL, good_checkpoint, load_checkpoint, prune
from transloom.pipeline.train.engine import Engine
from transloom.pipeline.train.optimizer import EngineState

SKIPPED_KEPT = 5  # batches
RECENT_LOSSES, ENOUGH_LOSSES = 100, 20  # steps that a spike is measured by, and the fewest that suffice

log = logging.getLogger(__name__)


class OnDivergence(Enum):
    """After a divergence: stop with an error, or go back to the newest good checkpoint and reorder the data."""

    stop = "stop"
    rollback = "rollback"


def spike(loss: float, recent: list[float], factor: float) -> float | None:
    """The median of the recent steps' losses if `loss` is above `factor` times the median, else None. A loss that is no
    spike is added to `recent`.

    Args:
        loss: of a step, in nats a target token.
        recent: of the steps before, oldest first; at most RECENT_LOSSES are kept.
    """
    if len(recent) >= ENOUGH_LOSSES and loss > factor * (median := statistics.median(recent)):
        return median
    recent.append(loss)
    del recent[:-RECENT_LOSSES]
    return None


def keep_batches(
    folder: Path,
    step_number: int,
    rollbacks: int,
    step: Step,
    losses: Tensor,
    text: Callable[[str, Any], str] | None,
) -> Path | None:
    """Writes the batches of a skipped step as JSON: the rows of the training shards in each micro-batch of every rank,
    and the examples of the micro-batches whose loss is no number (if every loss is a number, of all micro-batches).
    Keeps the files of the last SKIPPED_KEPT skipped steps. A collective.

    Args:
        folder: the run's.
        losses: (micro-batches of this rank,) as sums.
        text: (column, ids) to text; None: ids alone.
    Returns:
        the file; None where it could not be written.
    """
    numbered = enumerate(zip(step.rows, losses.tolist(), step.shares, strict=True))
    own = [
        {"micro_batch": rank() + i * world_size(), "rank": rank(), "loss": _json_number(loss), "rows": rows.tolist()}
        for i, (rows, loss, share) in numbered
        if share > 0.0
    ]
    micro_batches = sorted((one for part in gather(own) for one in part), key=lambda one: one["micro_batch"])
    # The number of rollbacks comes first, so that files of repeated steps sort behind those before the rollback.
    path = folder / SKIPPED_FOLDER / f"{rollbacks:02d}_step_{step_number:08d}.json"

    def content(column: str, row: int) -> dict[str, Any]:
        ids = step.examples.get(column, row).tolist()
        return {"ids": ids} | ({"text": text(column, ids)} if text else {})

    def write() -> bool:
        for one in [one for one in micro_batches if isinstance(one["loss"], str)] or micro_batches:
            one["examples"] = [
                {"row": row, **{column: content(column, row) for column in step.examples.columns}}
                for row in one["rows"]
            ]
        try:
            path.parent.mkdir(exist_ok=True)
            place = {"step": step_number, "epoch": step.epoch, "index": step.index, "rollbacks": rollbacks}
            write_json(path, {**place, "micro_batches": micro_batches})
            for old in sorted(path.parent.glob("*_step_*.json"))[:-SKIPPED_KEPT]:
                old.unlink()
        except OSError as error:  # a training does not end for this
            log.warning("%s can't be written: %s", path, error)
            return False
        return True

    return path if on_rank_zero(write) else None


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def reordered_before(folder: Path, reordered: list[list[int]]) -> list[list[int]]:
    """The known places in the data from which a run has another order. The run's folder is read, too, as a checkpoint
    does not record a rollback to itself. A collective.

    Args:
        folder: the run's.
        reordered: the places in the newest checkpoint.
    """

    def read() -> list[list[int]]:
        file = folder / ROLLBACKS_FILE
        return read_json(file)["reordered"] if file.exists() else []

    recorded = on_rank_zero(read)
    return recorded if len(recorded) > len(reordered) else reordered


def roll_back(engine: Engine, folder: Path, from_step: int, reordered: list[list[int]], reason: str) -> dict[str, Any]:
    """Loads the newest good checkpoint into the engine: see `good_checkpoint`. Later checkpoints are removed. A
    collective.

    Args:
        folder: the run's.
        reordered: the places [epoch, index] of the rollbacks so far.
    Returns:
        the checkpoint's state of the loop, with its own place as the last of `reordered`.
    Raises:
        UserError: there is no good checkpoint.
    """
    engine_state: EngineState | None = None

    def read() -> dict[str, Any]:
        nonlocal engine_state
        path = good_checkpoint(folder / CHECKPOINTS_FOLDER, reordered)
        if path is None:
            raise UserError(
                f"{reason}. There is no checkpoint in {folder / 'checkpoints'} to go back to (train.on_divergence="
                "rollback): none verifies that was saved before steps were skipped"
            )
        engine_state, trainer = load_checkpoint(path)
        trainer["reordered"] = [*reordered, [trainer["epoch"], trainer["index"]]]
        prune(folder / CHECKPOINTS_FOLDER, keep_last=KEEP_ALL, newest_step=trainer["step"])
        last = {"from_step": from_step, "to_step": trainer["step"], "reason": reason}
        write_json(folder / ROLLBACKS_FILE, {"reordered": trainer["reordered"], "last": last})
        return trainer

    trainer = on_rank_zero(read)
    engine.load_state(engine_state)
    return trainer
