"""`storage=`: a machine that is lost, a server that is away, and what is refused before anything starts."""

import re
import shutil
import time
from pathlib import Path

import pytest
from command import TINY, Command, transloom_here
from runs import STEPS, checkpoint_state, differing, folder_of
from s3_server import BUCKET, S3Server
from safetensors.torch import load

from transloom.jobs.__main__ import main
from transloom.jobs.commands.doctor import main as doctor
from transloom.jobs.config.compose import load_config
from transloom.jobs.runs.workspace import resumed
from transloom.pipeline.files import read_json

URL = f"s3://{BUCKET}/night"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("storage=bucket/folder", "storage: 'bucket/folder' is no address; give s3://bucket/folder"),
        ("storage=s3://me:canary@bucket/x", "storage: s3://***@bucket/x has a password or token in it"),
        ('storage="https://host/x?token=canary"', "storage: https://host/x?token=*** has a password or token in it"),
    ],
)
def test_an_address_that_is_none_or_has_a_secret_is_refused(capsys, word, said):
    assert main(["run", word]) == 2
    error = capsys.readouterr().err
    assert said in error and "canary" not in error


@pytest.mark.parametrize("job", ["run", "prepare", "train"])
def test_a_bucket_or_file_that_is_not_there_ends_a_job_before_it_starts(s3, tmp_path, capsys, job):
    folder = f"output_dir={tmp_path}"
    assert main([job, folder, "storage=s3://no-such-bucket/x"]) == 2
    assert "transloom: storage: s3://no-such-bucket/x: is not there" in capsys.readouterr().err
    corpus = ("corpus=text", "corpus.name=mine", f"corpus.path=s3://{BUCKET}/none")
    assert main([job, folder, *corpus, "corpus.train.source=a.en", "corpus.train.target=a.de"]) == 2
    said = f"transloom: corpus.train.source: no such file: s3://{BUCKET}/none/a.en (nor s3://{BUCKET}/none/a.en.gz)"
    assert said in capsys.readouterr().err


def test_doctor_looks_at_it(s3, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("transloom.jobs.commands.doctor.examine_machine", lambda *asked: [])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert doctor([f"output_dir={tmp_path}", "tracking=off", f"storage={URL}"]) == 0
    assert f"storage      {URL}" in capsys.readouterr().out
    assert doctor([f"output_dir={tmp_path}", "tracking=off", "storage=s3://no-such-bucket/x"]) == 2
    assert "storage: s3://no-such-bucket/x: is not there" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_goes_on_on_another_machine_as_if_nothing_had_been(place, whole, s3: S3Server, tmp_path):
    words = ("run", *TINY, "name=night", "tracking=off", f"storage={URL}")
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    command = Command(first, *words)
    _stop_at_the_first_checkpoint(s3, command, folder_of(first, "night"))
    assert not (folder_of(first, "night") / "training.json").exists(), "the kill came too late"
    shutil.rmtree(first)

    # Another machine: nothing is prepared again, and training goes on. Meanwhile the storage dies.
    command = Command(second, *words)
    command.wait_for(folder_of(second, "night") / "progress.json")
    s3.kill()
    outcome = command.wait()
    assert outcome.code == 0, outcome.said
    for stage in ("corpus", "tokenizer", "shards"):
        assert any(line.split()[:3] == [stage, "done", "before"] for line in outcome.out.splitlines()), outcome.said
    assert "  going on from step_000" in outcome.out
    fetched = rf"^Fetched     the run night from {URL}: checkpoint step_00000(050|100), \d+ files, \d+\.\d MB$"
    assert len(re.findall(fetched, outcome.out, re.MULTILINE)) == 1, outcome.said
    assert "Not everything could be stored: storage: s3://bucket/night: can't be reached" in outcome.out
    training = read_json(folder_of(second, "night") / "training.json")
    assert training["this_attempt"]["from_step"] in (50, 100) and training["step"] == STEPS
    expected = checkpoint_state(folder_of(place, "whole"))
    assert not differing(checkpoint_state(folder_of(second, "night")), expected)
    assert "canary" not in outcome.said
    for file in folder_of(second, "night").rglob("*.yaml"):
        assert b"canary" not in file.read_bytes()

    # The storage is back, empty: the same command has nothing left to do but to store.
    s3.start()
    outcome = transloom_here(second, *words)
    assert f"Stored      {URL}/runs/night" in outcome.out
    stored = s3.fs().cat_file(f"{BUCKET}/night/runs/night/checkpoints/step_{STEPS:08d}/state.safetensors")
    assert not differing(load(stored), expected)

    # On a third machine it is done, and is resumed by its name.
    third = tmp_path / "third"
    config = load_config(["resume=night", f"storage={URL}", f"output_dir={third}"])
    assert resumed(config, ["resume=night", f"storage={URL}", f"output_dir={third}"]).train.max_steps == STEPS
    assert read_json(third / "runs" / "night" / "prepared.json")["shards"].startswith(f"{third}/shards/")


def _stop_at_the_first_checkpoint(s3: S3Server, command: Command, folder: Path) -> None:
    """Kills everything when the storage has the checkpoint; the workers stand still until then."""
    command.wait_for(folder / "checkpoints" / "step_00000050")
    for worker in command.workers():
        worker.suspend()
    fs = s3.fs()
    deadline = time.monotonic() + 300
    while not fs.exists(f"{BUCKET}/night/runs/night/checkpoints/step_00000050/manifest.json"):
        if time.monotonic() > deadline:
            raise AssertionError(f"no checkpoint was stored\n{command.kill().said}")
        time.sleep(0.05)
    command.kill()
