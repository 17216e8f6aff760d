"""MLflow's SQLite store in an output folder that was moved or copied: it is told where its files are now.

The database has absolute addresses: of an experiment, below which new runs and models get theirs, and of each run and
each logged model. MLflow's API sets an experiment's when it is made and never again, and the others not at all.
"""

import logging
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

ARTIFACTS = "mlartifacts"  # beside the database
# Tables of MLflow 3, and the column of each that has an address.
ADDRESSES = {"experiments": "artifact_location", "runs": "artifact_uri", "logged_models": "artifact_location"}
LIVE_SECONDS = 3600.0  # a run that reported nothing for so long is not under way any more

log = logging.getLogger(__name__)


def settle_store(output_dir: Path, own: str | None = None) -> None:
    """Makes the store in an output folder name this folder where it names the one that it was in before. What it did,
    or could not do, is said as a warning.

    Where the old folder is gone, this may be another machine's or a container's view of a folder that stays where it
    is, in which a run goes on: then nothing is changed.

    Args:
        own: the id of the run that is to go on now, which may seem to be under way.
    """
    database = output_dir.absolute() / "mlflow.db"
    if not database.exists():
        return
    new = (output_dir.absolute() / ARTIFACTS).as_uri()
    try:
        with closing(sqlite3.connect(database, timeout=30.0)) as store:
            for old in _old_addresses(store, output_dir):
                before = path_of(old).parent
                if not before.exists() and (live := _live_run(store, old, own)):
                    log.warning(
                        "%s was moved, or is %s elsewhere, where the run %s reports to MLflow now: files go on being "
                        "uploaded to %s. After the run's end the next command sets that right",
                        *(output_dir, before, live, before / ARTIFACTS),
                    )
                    continue
                with store:  # one transaction
                    for table, column in ADDRESSES.items():
                        # substr, not LIKE: a folder's name may have LIKE's wildcards
                        store.execute(
                            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                        )
                log.warning(
                    "%s was moved or copied from %s. Its MLflow store had the files of runs there, and has them in %s "
                    "now, where new ones go, too",
                    *(output_dir, before, output_dir.absolute() / ARTIFACTS),
                )
    except sqlite3.Error as error:
        log.warning(
            "%s: whether it was moved is not known (%s); if it was, files are uploaded to its old place",
            *(database, error),
        )


def path_of(address: str) -> Path:
    """The path of a file:// address."""
    return Path(unquote(urlsplit(address).path))


def _old_addresses(store: sqlite3.Connection, output_dir: Path) -> list[str]:
    """Addresses of experiments that are an output folder's and not this one's, by whatever name it goes."""
    if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return []  # made, but not filled yet
    found = []
    query = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE 'file:%'"
    for (address,) in store.execute(query):
        folder = path_of(address)
        if folder.name == ARTIFACTS and not _is_same(folder.parent, output_dir):
            found.append(address)
    return found


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one is not there
        return one.absolute() == other.absolute()


def _live_run(store: sqlite3.Connection, address: str, own: str | None) -> str | None:
    """The name of another run below this address that is under way, as far as the store knows."""
    since = (time.time() - LIVE_SECONDS) * 1000
    found = store.execute(
        "SELECT name FROM runs WHERE status = 'RUNNING' AND run_uuid IS NOT ? AND substr(artifact_uri, 1, ?) = ? AND "
        "EXISTS (SELECT 1 FROM latest_metrics WHERE latest_metrics.run_uuid = runs.run_uuid AND timestamp > ?)",
        (own, len(address) + 1, f"{address}/", since),
    ).fetchone()
    return found[0] if found else None
