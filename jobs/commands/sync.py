"""Sync: upload to MLflow what is left of runs that ended, however they did, while it was away."""

import re
import socket
from collections.abc import Sequence
from pathlib import Path

from transloom.jobs.cli import configuration, sort_words
from transloom.jobs.config.compose import read_config
from transloom.jobs.config.schema import Config
from transloom.jobs.runs.report import was_used_here
from transloom.jobs.runs.workspace import bring_from, locked, output_dir, user_of
from transloom.jobs.terminal.console import console
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json
from transloom.pipeline.run_folder import CHECKPOINTS_FOLDER, CONFIG_FILE, RUN_RECORD, RUNS_FOLDER, SWEEPS_FOLDER
from transloom.pipeline.secrets import redacted
from transloom.pipeline.tracking.address import TrackingConfig, refuse_unreachable, store_of
from transloom.pipeline.tracking.run_page import add_parent, is_uploaded, record_death, upload_run
from transloom.pipeline.tracking.spool import driver_records, last_status

TRIAL = re.compile(r"(.+?)-\d{3,}(-seed\d+)?")  # of a sweep, see sweep.py


def main(argv: list[str]) -> int:
    words, _, settings = sort_words(argv)
    config = configuration("sync", settings)
    if not config.tracking.enabled:
        raise UserError("sync: there is no MLflow to upload to with tracking=off; leave that out")
    root = output_dir(config)
    folders = [folder for word in words for folder in _named(word, root)] if words else _all(root)
    if not folders:
        console.print(f"There are no runs in {root}.")
    width = max((len(folder.name) for folder in folders), default=0)
    failures: list[str] = []
    away: dict[str, str] = {}  # by address, what is wrong with a server
    for folder in dict.fromkeys(folders):
        try:
            outcome = sync_folder(folder, config.tracking.uri, is_named=bool(words), away=away)
        except (UserError, OSError, ValueError, KeyError) as error:
            outcome = f"failed: {error}"
            failures.append(folder.name)
        console.print(f"{folder.name:<{width}}  {outcome}")
    if failures:
        raise UserError(f"sync: {len(failures)} of {len(folders)} runs are not uploaded: {', '.join(failures)}")
    return 0


def sync_folder(folder: Path, uri: str | None, is_named: bool, away: dict[str, str]) -> str:
    """Uploads what is left of a run, and says how that went. A run that nobody closed becomes KILLED.

    Args:
        folder: of a run or a sweep.
        uri: of a store in place of the run's own; None: its own.
        is_named: the user asked for this run, and not for all.
        away: addresses that did not answer before; gets this one where it does not.
    Raises:
        UserError: the store does not take it.
    """
    if user := user_of(folder):
        return f"in use by {user}, which uploads what it reports: left to it"
    config = read_config(folder / CONFIG_FILE)
    if not config.tracking.enabled and not (is_named and uri):
        return "was made with tracking=off: left as it is"
    is_open = last_status(folder) in (None, "RUNNING")
    if is_open and not is_named and not was_used_here(folder):
        return f"was last used on another machine than {socket.gethostname()}: name it to upload it from here"
    with locked(folder):
        has_moved_on = _fetch(folder, config)
        if last_status(folder) in (None, "RUNNING") and not has_moved_on:
            record_death(folder)
        if parent := _parent_id(folder):
            add_parent(folder, parent)
        store = store_of(folder, uri)
        if is_uploaded(folder, store):
            return f"nothing to do, {last_status(folder)}"
        _refuse_away(store, folder, away)
        done = upload_run(folder, store)
    state = last_status(folder)
    return f"{done.points:,} points and {done.files:,} files uploaded to {redacted(store)}, {state}"


def _fetch(folder: Path, config: Config) -> bool:
    """Brings what another machine has added to a run in a storage; whether that is where the run goes on."""
    if config.storage is None or folder.parent.name != RUNS_FOLDER:
        return False
    before = _newest_step(folder)
    bring_from(config.storage, folder)
    return _newest_step(folder) > before


def _newest_step(folder: Path) -> str:
    return max((path.name for path in (folder / CHECKPOINTS_FOLDER).glob("step_*")), default="")


def _refuse_away(store: str, folder: Path, away: dict[str, str]) -> None:
    """
    Raises:
        UserError: the server does not answer; it is asked once for all runs.
    """
    if store not in away:
        try:
            refuse_unreachable(TrackingConfig(uri=store), folder.parent.parent)
            away[store] = ""
        except UserError as error:
            away[store] = str(error)
    if away[store]:
        raise UserError(away[store])


def _all(root: Path) -> list[Path]:
    """Sweeps first: their trials are tied to them by the id that they get."""
    kinds = (SWEEPS_FOLDER, RUNS_FOLDER)
    return [record.parent for kind in kinds for record in sorted(root.glob(f"{kind}/*/{RUN_RECORD}"))]


def _named(name: str, root: Path) -> Sequence[Path]:
    """The folders of a run, or of a sweep and its trials, by its name or its path.

    Raises:
        UserError: there is no such run.
    """
    if (root / SWEEPS_FOLDER / name / RUN_RECORD).exists():
        trials = [one for one in _all(root) if one.parent.name == RUNS_FOLDER and _sweep_of(one) == name]
        return [root / SWEEPS_FOLDER / name, *trials]
    for folder in (root / RUNS_FOLDER / name, Path(name).absolute()):
        if (folder / RUN_RECORD).exists():
            return [folder]
    known = ", ".join(one.name for one in _all(root)[:5]) or "none"
    raise UserError(f"there is no run {name!r} that reported to MLflow in {root}; there are: {known}")


def _sweep_of(folder: Path) -> str | None:
    """The name of the sweep that a run is a trial of."""
    found = TRIAL.fullmatch(folder.name)
    is_trial = found and any("sweep.trial" in record.get("tags", {}) for record in driver_records(folder))
    return found[1] if found and is_trial else None


def _parent_id(folder: Path) -> str | None:
    """The MLflow id of the sweep that a run is a trial of; None where it is none, or the sweep has no id yet."""
    sweep = _sweep_of(folder)
    record = folder.parent.parent / SWEEPS_FOLDER / (sweep or "") / RUN_RECORD
    return read_json(record)["run_id"] if sweep and record.exists() else None
