"""A secret under any setting: shown nowhere, submitted nowhere, and missed by name where a run needs it again."""

from pathlib import Path

import pytest
import ray
from ray._private import utils

from transloom.jobs.cli import configuration
from transloom.jobs.config.compose import load_config
from transloom.jobs.ray_cluster.session import _init_ray
from transloom.jobs.remote.clusters import Cluster
from transloom.jobs.remote.kubernetes import _config_there
from transloom.jobs.remote.submission import for_cluster
from transloom.jobs.training.prepare import with_local_data
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import stage

WORDS = ["corpus.kind=dataset", "corpus.dataset=parquet", "corpus.train.split=train", "cluster.num_workers=1"]
FILES = [
    ("corpus.data_files.train=https://host/x?sv=1&sig=canary", "https://host/x?sv=1&sig=***"),
    ("corpus.data_files.train=https://me:canary@host/x", "https://***@host/x"),
    (f"corpus.data_files.train=https://host/{'x' * 600}?X-Amz-Signature=canary", "?X-Amz-Signature=***"),
    ("tracking.uri='mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dcanary'", "DRIVER%3Dx%3BPWD%3D***"),
]


@pytest.mark.parametrize(("word", "shown"), FILES)
def test_it_is_neither_submitted_nor_in_a_manifest(word: str, shown: str) -> None:
    config = load_config([*WORDS, word])
    key = word.partition("=")[0].replace(".", r"\.")
    for use in (
        lambda: for_cluster(config, Cluster("lab", "http://127.0.0.1:8265")),
        lambda: _config_there(config, own_mlflow=False),
    ):
        with pytest.raises(UserError, match=f"^{key}: ") as refused:
            use()
        assert shown in str(refused.value) and "canary" not in str(refused.value)


@pytest.mark.parametrize(("word", "shown"), FILES)
def test_the_configuration_is_shown_without_it(word: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        configuration("train", [*WORDS, word, "--cfg", "job"])
    told = capsys.readouterr().out
    assert "canary" not in told and shown in told.replace("\n", "").replace(" ", "")


@pytest.mark.parametrize("name", ["x", "x" * 600])
def test_an_address_without_its_secret_is_not_asked(tmp_path: Path, name: str) -> None:
    config = load_config([*WORDS, f"corpus.data_files.train=https://host/{name}?sig=***", f"output_dir={tmp_path}"])
    with pytest.raises(UserError, match=r"^corpus\.data_files\.train: "):
        with_local_data(config)


def test_a_manifest_of_a_stage_does_not_have_it(tmp_path: Path) -> None:
    def build(_: Path) -> dict[str, str]:
        return {"example": "https://host/x?sig=canary row 7"}

    built = stage(tmp_path, "a-", {}, {"https://me:canary@host/x": "0"}, build)
    assert built.manifest["counts"] == {"example": "https://host/x?sig=*** row 7"}
    assert b"canary" not in (built.folder / "manifest.json").read_bytes()
    assert stage(tmp_path, "a-", {}, {"https://me:canary@host/x": "0"}, build).skipped


def test_ray_is_not_told_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, str] = {}
    line = "python -m transloom.jobs run corpus.data_files.train=https://host/x?sig=canary"
    monkeypatch.setattr(utils, "get_entrypoint_name", lambda: line)
    monkeypatch.setattr(ray, "init", lambda **_: told.update(command=utils.get_entrypoint_name()))
    _init_ray("local")
    assert told["command"] == line.replace("canary", "***")
    assert utils.get_entrypoint_name() == line
