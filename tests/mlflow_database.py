"""An MLflow database without runs, made once for all tests: MLflow takes seconds for the tables of each new one."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest


def give_database(factory: pytest.TempPathFactory, file: Path) -> None:
    """Copies the database to `file`, whose folder is made where need be."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # then each process has a folder of its own there
        folder = folder.parent
    empty = folder / "mlflow-without-runs.db"
    with open(folder / f"{empty.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not empty.exists():
            _make(unfinished := folder / f"{empty.name}.unfinished")
            unfinished.rename(empty)
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(empty, file)


def _make(file: Path) -> None:
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine

    engine = create_engine(f"sqlite:///{file}")
    _initialize_tables(engine)
    engine.dispose()
