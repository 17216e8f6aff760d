"""What the doctor finds on this machine, and whom it tells what to do."""

import shutil
from types import SimpleNamespace

import pytest

from transloom.jobs.commands import doctor
from transloom.jobs.commands.doctor import main
from transloom.jobs.ray_cluster import machine
from transloom.jobs.remote.clusters import clusters_file


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_a_machine_that_is_well(home, capsys):
    assert main([f"output_dir={home}/out"]) == 0
    said = capsys.readouterr().out
    for what in ("versions", "compiler", "processor", "arithmetic", "GPUs", "memory", "output", "MLflow", "clusters"):
        assert f"  {what} " in said
    assert "torch 2." in said and "GFLOP/s" in said and "transloom run" in said


@pytest.mark.parametrize(("processes", "sensible"), [([], "transloom cluster up"), (["ray"], "transloom submit run")])
def test_a_cluster_that_is_up_is_not_to_be_started(home, capsys, monkeypatch, processes, sensible):
    monkeypatch.setattr(doctor, "examine_machine", lambda *asked: [])
    monkeypatch.setattr(doctor, "living", lambda: processes)
    assert main([f"output_dir={home}/out"]) == 0
    said = capsys.readouterr().out
    assert [one for one in ("transloom cluster up", "transloom submit run") if one in said] == [sensible]


def test_what_is_wrong_is_told_with_what_to_do(home, capsys, monkeypatch):
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    clusters_file().parent.mkdir(parents=True)
    clusters_file().write_text(f"lab:\n  address: http://127.0.0.1:1\n  token_file: {token}\n")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e6))
    monkeypatch.setattr(machine, "versions", lambda: {"python": "3.11.0", "torch": None})
    assert main([f"output_dir={home}", "tracking.uri=http://127.0.0.1:1"]) == 2
    said = capsys.readouterr().out
    for advice in (
        "install torch, with the versions of constraints.txt",
        f"others can read it: chmod 600 {token}",
        f"others can read this token; take that from them: chmod 600 {token}",
        "checkpoints may not fit",
        "no MLflow answers at http://127.0.0.1:1",
    ):
        assert advice in said
    assert "secret" not in said
