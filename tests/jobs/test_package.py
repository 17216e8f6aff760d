"""What goes to a cluster with a job."""

import shutil
import subprocess
import sys

import pytest

from transloom.jobs.config.compose import load_config, read_config
from transloom.jobs.remote import package
from transloom.jobs.remote.package import ROOT, packed


def test_a_package_runs_by_itself_and_has_the_configuration(tmp_path):
    config = load_config(["seed=5", f"output_dir={tmp_path}"])
    with packed(config, {"revision": "abc"}) as folder:
        assert read_config(folder / "config.yaml") == config
        code = "import transloom.jobs.commands.run, transloom.jobs.remote.package as one; "
        code += "print(one.__file__, one.submission()['revision'])"
        command = [sys.executable, "-c", code]
        said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
        assert said == f"{folder}/transloom/jobs/remote/package.py abc\n"
    assert not folder.exists()


def test_nothing_goes_along_but_code_and_settings(tmp_path, monkeypatch):
    """Whatever else lies in the project: secrets, data, outputs, the history."""
    project = tmp_path / "project"
    for part in package.CONTENTS:
        shutil.copytree(ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".env", "jobs/.env", "jobs/.secret.py", "pipeline/.git/config.py", "jobs/token", "model/weights.pt"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_bytes(b"c4n4ry")
    for name in ("outputs/runs/a/config.yaml", "data/train.py", ".git/HEAD", "conf/.env.yaml"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(b"c4n4ry")
    monkeypatch.setattr(package, "ROOT", project)
    with packed(load_config([]), {}) as folder:
        files = [file for file in folder.rglob("*") if file.is_file()]
        assert {file.suffix for file in files} == {".py", ".yaml", ".json"}
        assert not [file for file in files if b"c4n4ry" in file.read_bytes()]
        assert len(files) > 100 and sum(file.stat().st_size for file in files) < 3_000_000


@pytest.fixture(autouse=True)
def no_submission():
    assert package.submission() == {}
