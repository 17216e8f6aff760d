"""A job's whole life on a real cluster of two nodes, with a token, that reports to a real MLflow server whose password
is in the cluster's environment; at the end both secrets are searched for everywhere."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from command import ROOT, TINY, transloom_here
from mlflow_database import give_database

from transloom.jobs.commands.ui import HOST, _free_port
from transloom.pipeline.files import read_json
from transloom.pipeline.tracking.address import ui_command

pytestmark = pytest.mark.slow

PASSWORD = "c4n4ry-p4ssw0rd"
SHORT = (*TINY, "train.max_steps=40", "train.validate_every=20", "train.checkpoint_every=20", "cluster.num_workers=1")
LONG = (*SHORT, "train.max_steps=20000", "train.validate_every=20000", "train.checkpoint_every=20000")


@dataclass(frozen=True)
class Place:
    folder: Path
    environment: dict[str, str]

    @property
    def settings(self) -> Path:
        return self.folder / "config" / "transloom"

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs"

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "transloom.jobs", *words],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def transloom(self, *words: str, code: int = 0) -> str:
        """What `transloom <words>` says, which must end with this exit code."""
        outcome = transloom_here(ROOT, *words, code=code, environment=self.environment)
        return outcome.out + outcome.err

    def in_a_process(self, *words: str, code: int = 0, seconds: float = 600.0) -> str:
        """As `transloom`, in a process of its own."""
        with self.start(*words) as process:
            try:
                said, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise AssertionError(f"still running after {seconds:g} s\n{process.communicate()[0]}") from None
        assert process.returncode == code, said
        return said

    def submit(self, *words: str, code: int = 0) -> tuple[str, str]:
        """The job's name, and what its submission says."""
        said = self.transloom("submit", *words, f"output_dir={self.outputs}", code=code)
        found = re.search(r"^Submitted +(\S+) to local", said, re.MULTILINE)
        assert found, said
        return found[1], said


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("submit")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "RAY_", "PYTHONPATH"))
    }
    give_database(tmp_path_factory, folder / "server.db")
    port = _free_port(range(5100, 5200))
    command, more = ui_command(f"sqlite:///{folder}/server.db", folder / "artifacts", port=port)
    environment.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # matplotlib's fonts, which take seconds
    environment |= {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config"), "COLUMNS": "80"}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}  # as in many containers
    with open(folder / "server.log", "ab") as log:
        server = subprocess.Popen(command, env=environment | more, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(f"http://{HOST}:{port}/health")
        yield Place(folder, environment | {"MLFLOW_TRACKING_URI": f"http://user:{PASSWORD}@{HOST}:{port}"})
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            urllib.request.urlopen(url, timeout=30).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(place) -> Iterator[dict[str, Any]]:
    """What is known of the cluster, once it is up."""
    said = place.in_a_process("cluster", "up", "nodes=2", "cpus=1")
    try:
        assert "transloom submit run" in said and "2 nodes of 1 CPU, " in said
        yield read_json(place.settings / "local.json") | {"token": (place.settings / "local.token").read_text()}
    finally:
        place.in_a_process("cluster", "down")


@pytest.fixture(scope="module")
def twice(place, cluster) -> list[tuple[str, str]]:
    """The same submitted twice: the jobs, and what the submissions said."""
    return [place.submit("run", *SHORT) for _ in range(2)]


def test_only_loopback_listens_and_only_with_a_token(place, cluster):
    family = [psutil.Process(one["pid"]) for one in cluster["processes"]]
    family += [child for one in family for child in one.children(recursive=True)]
    addresses = {
        connection.laddr.ip
        for one in family
        for connection in one.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses and addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    for headers, code in (({}, 401), ({"Authorization": "Bearer other"}, 403)):
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(urllib.request.Request(f"{cluster['address']}/api/jobs/", headers=headers))
        assert refusal.value.code == code
    assert (place.settings / "local.token").stat().st_mode & 0o777 == 0o600
    assert len(cluster["token"]) == 64
    said = place.transloom("cluster", "status")
    assert "2 of 2 nodes, 2 CPUs" in said and cluster["token"] not in said
    assert "up already" in place.transloom("cluster", "up", code=2)


def test_the_same_submitted_twice_gives_two_runs(place, twice):
    names = [job for job, _ in twice]
    assert len(set(names)) == 2
    for name, (_, said) in zip(names, twice, strict=True):
        assert read_json(place.outputs / "runs" / name / "training.json")["step"] == 40
        assert "Scores of the averaged model" in said and f"\nThe job {name} is done.\n" in said
        assert " INFO " not in said.partition("Running entrypoint")[2]
    bleu = [re.findall(r"^test bleu.*", said, re.MULTILINE) for _, said in twice]
    assert bleu[0] == bleu[1], "only the names differ"


def test_what_ran_is_what_was_packed_here(place, cluster, twice):
    (run,) = [run for run in _runs(place) if run.info.run_name == twice[0][0]]
    assert run.data.tags["environment.command"].startswith("transloom submit run corpus.phrasebook_pairs=500")
    assert re.match(r"[0-9a-f]{40}", run.data.tags["mlflow.source.git.commit"])
    assert run.info.status == "FINISHED"
    packages = [path.parent for path in Path(cluster["folder"], "node-0").rglob("working_dir_files/*/config.yaml")]
    assert len(packages) >= 2
    for package in packages:  # its code is compiled once, not by each process
        assert list((package / "transloom" / "jobs" / "__pycache__").glob("__init__.*.pyc"))


def test_jobs_are_listed_with_what_became_of_them(place, twice):
    said = place.transloom("jobs")
    (run,) = [run for run in _runs(place) if run.info.run_name == twice[1][0]]
    row = next(line.split() for line in said.split("\n") if line.startswith(twice[1][0]))
    assert row[1:5] == ["succeeded", "run", "evaluate", "40/40"]
    assert row[5] == "BLEU" and re.fullmatch(r"\d+\.\d\d", row[6]) and row[7] == "test"
    assert row[-1].startswith("http://127.0.0.1:") and run.info.run_id in row[-1]
    assert place.transloom("logs", twice[0][0]).count("Stage: train") == 1
    assert "no such job on the cluster local; the newest there: " in place.transloom("logs", "hole", code=2)
    run = twice[0][0].rpartition("-")[0]
    said = place.transloom("logs", run, code=2)
    assert f"{run}: is the name of a run; its jobs, the newest first: " in said and twice[0][0] in said


def test_a_job_is_left_stopped_and_resumed(place, cluster):
    """Ctrl-C leaves it running; stop saves the step that it is at; resume goes on from there."""
    with place.start("submit", "train", *LONG, "name=long", f"output_dir={place.outputs}") as submitting:
        assert submitting.stdout is not None
        for line in submitting.stdout:
            if line.startswith("  step "):
                break
        submitting.send_signal(signal.SIGINT)
        said = submitting.stdout.read()
        assert submitting.wait(240) == 130, said
    found = re.search(r"transloom logs (long-\w+) -f to=local", said)
    assert found and f"The job {found[1]} goes on." in said
    job = found[1]
    assert re.search(rf"^{job} +running +train +train +[\d,]+/20,000 ", place.transloom("jobs"), re.MULTILINE)
    assert "is still running: transloom stop" in place.transloom("resume", job, code=2)
    again = ("submit", "train", *LONG, "name=long", f"output_dir={place.outputs}")
    assert f"name: the job {job} is at long now" in place.transloom(*again, code=2)

    said = place.transloom("stop", job)
    found = re.search(r"the run long was stopped, with the checkpoint step_0*(\d+)", said)
    assert found and f"transloom resume {job}" in said
    step = int(found[1])
    assert 0 < step < 20000
    folder = place.outputs / "runs" / "long"
    assert not (folder / "training.json").exists()
    assert re.search(rf"^{job} +stopped ", place.transloom("jobs"), re.MULTILINE)
    (run,) = [run for run in _runs(place) if run.info.run_name == "long"]
    assert run.info.status == "KILLED"

    assert "model.d_model: can't change" in place.transloom("resume", job, "model.d_model=64", code=2)
    said = place.transloom("resume", job, f"train.max_steps={step + 10}")
    assert f"going on from step_{step:08d}" in said
    training = read_json(folder / "training.json")
    assert (training["step"], training["this_attempt"]["from_step"]) == (step + 10, step)
    (run,) = [run for run in _runs(place) if run.info.run_name == "long"]
    assert run.info.status == "FINISHED"


def test_a_sweep_is_stopped_and_resumed_and_its_trials_have_workers_on_both_nodes(place, cluster):
    """A step has as many tokens on one worker as on two, so both trials come to the same losses."""
    words = [*TINY, "train.max_steps=600", "train.validate_every=600", "train.checkpoint_every=600", "name=swept"]
    words += ["sweep.sampler=grid", "sweep.stop=none", "sweep.space={cluster.num_workers: {choices: [2, 1]}}"]
    first = place.outputs / "runs" / "swept-001"
    with place.start("submit", "sweep", *words, f"output_dir={place.outputs}") as submitting:
        assert submitting.stdout is not None
        job = next(line.split()[1] for line in submitting.stdout if line.startswith("Submitted "))
        while not (first / "progress.json").exists():
            assert submitting.poll() is None, submitting.stdout.read()
            time.sleep(0.05)
        assert "the sweep swept was stopped, its trials under way with a checkpoint" in place.transloom("stop", job)
        said, _ = submitting.communicate(timeout=240)
        assert submitting.returncode == 143, said
    checkpoints = [path.name for path in (first / "checkpoints").iterdir() if path.name.startswith("step_")]
    assert len(checkpoints) == 1 and not (first / "training.json").exists()
    runs = {run.info.run_name: run for run in _runs(place) if run.info.run_name.startswith("swept")}
    assert {run.info.status for run in runs.values()} == {"KILLED"} and runs.keys() == {"swept", "swept-001"}

    assert "model.d_model: can't change" in place.transloom("resume", job, "model.d_model=64", code=2)
    said = place.transloom("resume", job)
    assert "The best: trial " in said and "Traceback" not in said
    losses = []
    for number, workers in ((1, 2), (2, 1)):
        run = place.outputs / "runs" / f"swept-00{number}"
        training = read_json(run / "training.json")
        assert (training["step"], training["world_size"]) == (600, workers)
        losses.append([one["loss"] for one in training["validations"]])
    assert read_json(first / "training.json")["this_attempt"]["from_step"] == int(checkpoints[0].removeprefix("step_"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    row = next(line.split() for line in place.transloom("jobs").split("\n") if line.startswith("swept-"))
    assert row[1:5] == ["succeeded", "sweep", "evaluate", "2/2"], row
    runs = {run.info.run_name: run for run in _runs(place) if run.info.run_name.startswith("swept")}
    assert {run.info.status for run in runs.values()} == {"FINISHED"} and len(runs) == 3


def test_what_can_not_be_is_told_in_a_sentence(place, cluster):
    said = place.transloom("submit", "run", f"tracking.uri=http://user:{PASSWORD}@{HOST}:1", code=2)
    assert "tracking.uri: http://***@127.0.0.1:1 has a password or token in it" in said and PASSWORD not in said

    _, said = place.submit("run", *TINY, f"tracking.uri=http://{HOST}:1", code=2)
    assert f"transloom: tracking.uri: no MLflow answers at http://{HOST}:1 from " in said

    (place.settings / "other.token").write_text("other")
    (place.settings / "other.token").chmod(0o600)
    entry = {"other": {"address": cluster["address"], "token_file": str(place.settings / "other.token")}}
    with open(place.settings / "clusters.yaml", "a") as file:
        yaml.safe_dump(entry, file)
    said = place.transloom("submit", "run", *TINY, "to=other", code=2)
    assert "other: the cluster refuses the token" in said and "Traceback" not in said
    assert "to=: say which cluster: local, other" in place.transloom("jobs", code=2)
    text = (place.settings / "clusters.yaml").read_text()
    (place.settings / "clusters.yaml").write_text(text[: text.index("other:")])


def test_by_hand_it_is_the_same(place, cluster, tmp_path):
    """As docs/clusters.md says."""
    environment = {name: value for name, value in place.environment.items() if not name.startswith("MLFLOW")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(place.settings / "local.token")}
    words = [*SHORT, "name=hand", f"output_dir={place.outputs}"]
    words += ["cluster.address=auto", "tracking=off"]
    resolved = place.transloom("run", *words, "--cfg", "job")
    for part in ("conf", "jobs", "model", "pipeline"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "config.yaml").write_text(resolved)
    command = ["job", "submit", f"--address={cluster['address']}", f"--working-dir={tmp_path}", "--"]
    command += ["python", "-m", "transloom.jobs", "train", "resolved=config.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_json(place.outputs / "runs" / "hand" / "training.json")["step"] == 40


def test_the_doctor_looks_at_every_node(place, cluster):
    said = place.transloom("doctor", "to=local", f"output_dir={place.outputs}")
    assert len(re.findall(r"^  ok +arithmetic ", said, re.MULTILINE)) == 2
    assert re.search(r"^  ok +gloo +2 nodes sum up [\d.]+ GB/s$", said, re.MULTILINE), said
    assert "  ok      MLflow       http://***@127.0.0.1:" in said


def test_no_secret_is_anywhere(place, cluster, twice):
    """Not in a log, an MLflow parameter, an artifact, nor in what Ray tells of its jobs."""
    request = urllib.request.Request(
        f"{cluster['address']}/api/jobs/", headers={"Authorization": f"Bearer {cluster['token']}"}
    )
    jobs = json.loads(urllib.request.urlopen(request).read())
    assert {"metadata", "runtime_env"} <= jobs[0].keys() and len(jobs) >= 2
    told = json.dumps(jobs) + "".join(said for _, said in twice) + place.transloom("jobs")
    assert PASSWORD not in told and cluster["token"] not in told

    roots = (place.folder, Path(cluster["folder"]))
    files = [path for root in roots for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    names = {path.name for path in files}
    assert {"server.db", "config.yaml", "raylet.out", f"job-driver-{twice[0][0]}.log"} <= names
    found = {
        str(path)
        for path in files
        for secret in (PASSWORD, cluster["token"])
        if secret.encode() in path.read_bytes() and path != place.settings / "local.token"
    }
    assert found == set()


def test_down_leaves_nothing_behind(place, cluster):
    roots = [psutil.Process(one["pid"]) for one in cluster["processes"]]
    family = [*roots, *(child for one in roots for child in one.children(recursive=True))]
    assert len(family) > 4
    place.in_a_process("cluster", "down")
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not Path(cluster["folder"]).exists()
    assert [path.name for path in place.settings.iterdir() if path.name != "other.token"] == ["clusters.yaml"]
    assert "local" not in (place.settings / "clusters.yaml").read_text()
    assert "The local cluster is not up." in place.transloom("cluster", "status")
    assert "names no cluster yet" in place.transloom("jobs", code=2)


def _runs(place: Place) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place.folder}/server.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "transloom"]
    return list(client.search_runs([experiment.experiment_id]))
