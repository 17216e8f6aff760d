from pathlib import Path

import pytest
from mlflow_database import give_database


@pytest.fixture(scope="session")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MLflow store for all tests."""
    folder = tmp_path_factory.mktemp("outputs")
    give_database(tmp_path_factory, folder / "mlflow.db")
    return folder


@pytest.fixture
def no_server_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
