from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MLflow store for all tests, for it takes seconds to make."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def no_server_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
