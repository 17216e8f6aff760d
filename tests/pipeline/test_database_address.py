"""The stores of an output folder lie in that folder, whatever its name has that an address would read otherwise."""

import os
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from transloom.pipeline.files import database_file, database_uri
from transloom.pipeline.tracking.address import TrackingConfig, local_store, tracking_uri

NAMES = ["plain", "a%20b", "what?", "c#d", "e f", "%3F", "été", "a?b=c&d", "100%"]


@pytest.mark.parametrize("name", NAMES)
def test_a_database_lies_in_the_folder_that_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    uri = database_uri(folder / "mlflow.db")
    with create_engine(uri).connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
    assert database_file(uri) == folder / "mlflow.db"
    assert os.listdir(tmp_path) == [name] and os.listdir(folder) == ["mlflow.db"]
    assert tracking_uri(TrackingConfig(uri=local_store(folder)), tmp_path) == uri


def test_the_address_of_an_ordinary_folder_is_as_it_was(tmp_path: Path) -> None:
    assert local_store(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert database_file("postgresql://host/db") is None and database_file("http://host:5000") is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a%20b", "what?#x y"])
def test_mlflow_keeps_runs_and_their_files_in_the_folder(tmp_path: Path, name: str) -> None:
    from mlflow import MlflowClient

    folder = tmp_path / name
    folder.mkdir()
    client = MlflowClient(local_store(folder))
    run = client.create_run(client.create_experiment("one", (folder / "mlartifacts").as_uri()))
    client.log_text(run.info.run_id, "text", "note.txt")
    assert os.listdir(tmp_path) == [name] and sorted(os.listdir(folder)) == ["mlartifacts", "mlflow.db"]
    assert len(list(folder.rglob("note.txt"))) == 1
