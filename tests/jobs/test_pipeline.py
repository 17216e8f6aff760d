"""The whole path through the real command line, real Ray and a real MLflow store, and what becomes of it under faults.

A Ray session costs ten seconds and more of starting processes: runs are shared by the tests that only look at them.
"""

import fcntl
import os
import re
import shutil
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from command import ROOT, TINY, Command, Outcome, transloom
from safetensors.torch import load_file

from jobs.__main__ import main
from jobs.cluster import ALLOCATOR, ray_session
from jobs.config import ClusterConfig, load_config
from jobs.prepare import prepare_stage
from jobs.train import train_worker
from jobs.workspace import Run, run_for
from pipeline.files import read_json
from pipeline.spool import read_points

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 150  # of TINY, with a checkpoint and a validation every 50
REPEATABLE = ("train/loss", "train/grad_norm", "train/learning_rate", "train/target_tokens", "train/epoch")
VALIDATION = ("validation/loss", "validation/bleu", "validation/chrf")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where all commands are given. The corpus in its outputs/ is prepared once."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def whole(place) -> Outcome:
    """The run that nothing disturbs, by which the others are measured."""
    return transloom(place, "run", *TINY, "name=whole")


def folder_of(place: Path, name: str) -> Path:
    return place / "outputs" / "runs" / name


def trajectory(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of what every attempt at the same training repeats exactly, as often as it was logged."""
    points = read_points(folder)
    return {name: sorted((step, value) for key, step, value, _ in points if key == name) for name in REPEATABLE}


def losses(folder: Path) -> dict[int, float]:
    return dict(trajectory(folder)["train/loss"])


def checkpoint_state(folder: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    """Weights and optimizer state."""
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / "state.safetensors")


def differing(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not bit-identical."""
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if name not in found or not torch.equal(found[name], expected[name])]


def mlflow_runs(place: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place}/outputs/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "transloom"]
    return client.search_runs([experiment.experiment_id])


# A run that nothing disturbs


def test_run_tells_what_a_person_wants_to_know(place, whole):
    said = whole.out
    for stage in ("corpus", "tokenizer", "shards", "train", "evaluate"):
        assert re.search(rf"^{stage} +[\d.:]+( s)?$", said, re.MULTILINE), said
    for score, efficiency in (("bleu", "no"), ("chrf", "yes")):  # the signature in one piece, so that it can be copied
        line = rf"^test {score} +\d+\.\d\d +nrefs:1\|case:mixed\|eff:{efficiency}\|\S+\|version:[\d.]+$"
        assert re.search(line, said, re.MULTILINE), said
    for word in ("source", "reference", "translation"):
        assert len(re.findall(rf"^  {word} +\S", said, re.MULTILINE)) == 5, said
    assert "target tokens/s" in said
    assert str(folder_of(place, "whole") / "checkpoints") in said
    assert "transloom ui" in said
    assert "transloom translate whole < your_text" in said
    assert not whole.err


def test_run_is_one_finished_run_in_mlflow(place, whole):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place}/outputs/mlflow.db")
    (run,) = [run for run in mlflow_runs(place) if run.info.run_name == "whole"]
    run_id = run.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params["model.d_model"] == "32"
    assert run.data.params["cluster.num_workers"] == "2"
    assert re.match(r"[0-9a-f]{40}", run.data.tags["mlflow.source.git.commit"])
    prepared = read_json(folder_of(place, "whole") / "prepared.json")
    for stage, tag in (("corpus", "corpus.hash"), ("shards", "shards.hash")):
        assert run.data.tags[tag] == read_json(Path(prepared[stage]) / "manifest.json")["key"]
    assert re.fullmatch(r"[0-9a-f]{64}", run.data.tags["tokenizer.hash"])

    history = client.get_metric_history(run_id, "train/loss")
    assert sorted((point.step, point.value) for point in history) == sorted(losses(folder_of(place, "whole")).items())
    assert [step for step in sorted(losses(folder_of(place, "whole")))] == list(range(5, STEPS + 1, 5))
    for name in VALIDATION:
        assert sorted(point.step for point in client.get_metric_history(run_id, name)) == [50, 100, 150]
    assert {"test/bleu", "test/chrf"} <= run.data.metrics.keys()
    assert "tok:13a" in run.data.tags["signature.bleu"]

    artifacts = place / "outputs" / "mlartifacts" / run_id / "artifacts"
    assert (artifacts / "figures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    for table, rows in (("test_samples.json", 5), ("validation_samples.json", 15)):
        assert len(read_json(artifacts / table)["data"]) == rows
    assert (artifacts / "config.yaml").exists()

    models = {model.name: model for model in client.search_logged_models([run.info.experiment_id])}
    assert {"step-50", "step-100", "step-150", "averaged-150"} <= models.keys()
    assert {metric.key for metric in models["step-100"].metrics or []} >= set(VALIDATION)
    scores = {metric.key: metric.value for metric in models["averaged-150"].metrics or []}
    assert scores["test/bleu"] == run.data.metrics["test/bleu"]
    assert {info.path for info in client.list_logged_model_artifacts(models["averaged-150"].model_id)} >= {
        "model.safetensors",
        "config.json",
        "tokenizer.model",
    }


def test_the_same_command_again_finds_everything_done(place, whole, monkeypatch, capsys):
    folder = folder_of(place, "whole")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    runs = len(mlflow_runs(place))
    with monkeypatch.context() as patched:
        patched.chdir(place)
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name in ("ray", "mlflow"):  # neither is started, which would take longer than all the rest
            patched.setitem(sys.modules, name, None)
        assert main(["run", *TINY, "name=whole"]) == 0
    said = capsys.readouterr().out
    for stage in ("corpus", "tokenizer", "shards", "train", "evaluate"):
        assert re.search(rf"^{stage} +done before$", said, re.MULTILINE), said
    assert re.findall("^test bleu.*", said, re.MULTILINE) == re.findall("^test bleu.*", whole.out, re.MULTILINE)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before
    assert len(mlflow_runs(place)) == runs


def test_translate_gives_a_line_for_a_line(place, whole):
    text = "Anna has been learning Icelandic for 9 days.\n\nThe bill comes to $102.99.\n\u2028Thomas\n".encode()
    piped = transloom(place, "translate", "whole", text=text)
    lines = piped.out.split("\n")
    assert len(lines) == 5 and lines[4] == ""
    assert lines[1] == "" and lines[0] and lines[2]
    (place / "text.en").write_bytes(text)
    model = folder_of(place, "whole") / "model"
    assert transloom(place, "translate", str(model), "text.en").out == piped.out


def test_evaluating_with_another_search_adds_a_result(place, whole):
    folder = folder_of(place, "whole") / "evaluation"
    before = set(folder.iterdir())
    transloom(place, "evaluate", "resume=whole", "decode=greedy")
    (added,) = set(folder.iterdir()) - before
    assert before
    lines = (added / "test.hypotheses").read_bytes().split(b"\n")
    assert len(lines) == 21 and lines[20] == b""
    greedy, beam = (read_json(one / "result.json") for one in (added, before.pop()))
    assert greedy["test"]["bleu"]["signature"] == beam["test"]["bleu"]["signature"]
    assert greedy["steps_averaged"] == beam["steps_averaged"] == [100, 150]


# What is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["resume=whole", "model.d_model=64"], r"^transloom: model\.d_model: can't change when a run is resumed"),
        (["resume=whole", "corpus=phrasebook_en_fr"], r"^transloom: corpus: can't change when a run is resumed"),
        (["resume=whole", "tokenizer.vocab_size=400"], r"^transloom: tokenizer\.vocab_size: can't change"),
        (["resume=hole", "train.max_steps=200"], r"^transloom: there is no run 'hole' in .*: whole$"),
    ],
)
def test_a_resumed_run_stays_the_run_it_was(place, whole, monkeypatch, capsys, words, message):
    monkeypatch.chdir(place)
    assert main(["train", *words]) == 2
    assert re.search(message, capsys.readouterr().err.strip())


def test_a_name_is_not_given_to_another_configuration(place, whole, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(["run", *TINY, "name=whole", "seed=7"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("transloom: name: the run whole exists and was made with other settings or data")


def test_two_commands_on_one_run(place, whole):
    settings = (folder_of(place, "whole") / "config.yaml").read_bytes()
    with open(folder_of(place, "whole") / "lock", "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(b"somebody else")
        lock.truncate()
        lock.flush()
        outcome = transloom(place, "run", *TINY, "name=whole", "decode=greedy", code=2)
    assert "the run whole is in use by somebody else" in outcome.err
    assert (folder_of(place, "whole") / "config.yaml").read_bytes() == settings


def test_more_workers_than_the_cluster_has_room_for(place):
    words = [word for word in TINY if "num_workers" not in word and "batch.tokens" not in word]
    outcome = transloom(place, "run", *words, "batch.tokens=102400", "cluster.num_workers=400", code=2)
    assert re.match(
        r"transloom: cluster\.num_workers: 400 workers of 1 CPU need 400, but the cluster has \d+", outcome.err
    )
    assert outcome.seconds < 60
    assert not list((place / "outputs" / "runs").glob("phrasebook*")), "a run that never was"


# Kills


def test_a_run_killed_half_way_ends_as_if_nothing_had_been(place, whole):
    words = ("run", *TINY, "name=killed")
    command = Command(place, *words)
    folder = folder_of(place, "killed")
    command.wait_for(folder / "checkpoints" / "step_00000050")
    command.kill()
    assert not (folder / "training.json").exists(), "the kill came too late"
    logged = len(losses(folder))
    (run,) = [run for run in mlflow_runs(place) if run.info.run_name == "killed"]

    transloom(place, *words)
    training = read_json(folder / "training.json")
    assert training["this_attempt"]["from_step"] in (50, 100) and training["step"] == STEPS
    assert logged >= 10
    expected = folder_of(place, "whole")
    assert not differing(checkpoint_state(folder), checkpoint_state(expected))
    model = "model/model.safetensors"
    assert not differing(load_file(folder / model), load_file(expected / model))

    # Into the same MLflow run, every point once.
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place}/outputs/mlflow.db")
    (after,) = [run for run in mlflow_runs(place) if run.info.run_name == "killed"]
    assert after.info.run_id == run.info.run_id and after.info.status == "FINISHED"
    for name, points in trajectory(expected).items():
        history = client.get_metric_history(after.info.run_id, name)
        assert sorted((point.step, point.value) for point in history) == points
    for name in VALIDATION:
        steps = Counter(point.step for point in client.get_metric_history(after.info.run_id, name))
        assert steps == {50: 1, 100: 1, 150: 1}


def test_a_killed_worker_is_started_again(place, whole):
    words = ("train", *TINY, "name=worker", "tracking=off")
    folder = folder_of(place, "worker")

    # With no retries left, the command says so.
    command = Command(place, *words, "cluster.max_failures=0")
    _kill_worker(command, folder, 50, which=0)
    outcome = command.wait()
    assert outcome.code == 2, outcome.said
    assert outcome.err.startswith("transloom: training failed, and no retries are left (cluster.max_failures=0)")
    assert "the process of worker" in outcome.err and "Traceback" not in outcome.err

    # With some, training goes on by itself, from the newest checkpoint.
    command = Command(place, *words)
    _kill_worker(command, folder, 100, which=1)
    outcome = command.wait()
    assert outcome.code == 0, outcome.said
    training = read_json(folder / "training.json")
    assert training["step"] == STEPS and training["this_attempt"]["from_step"] == 100
    expected = folder_of(place, "whole")
    assert not differing(checkpoint_state(folder), checkpoint_state(expected))
    assert trajectory(folder) == trajectory(expected)


def _kill_worker(command: Command, folder: Path, step: int, which: int) -> None:
    """SIGKILL to one of the workers as soon as the step's checkpoint is there."""
    (folder / "progress.json").unlink(missing_ok=True)
    command.wait_for(folder / "progress.json")  # found before the steps begin to fly: it takes a moment
    workers = command.workers()
    assert len(workers) == 2
    command.wait_for(folder / "checkpoints" / f"step_{step:08d}")
    workers[which].kill()
    assert not (folder / "training.json").exists(), "the kill came too late"


def test_a_resumed_run_goes_back_over_a_damaged_checkpoint(place, whole):
    expected, folder = folder_of(place, "whole"), folder_of(place, "longer")
    shutil.copytree(expected, folder)
    damaged = folder / "checkpoints" / "step_00000150" / "state.safetensors"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)

    outcome = transloom(place, "train", "resume=longer", "train.max_steps=180", "tracking=off")
    assert f"{damaged} is damaged" in outcome.out + outcome.err
    training = read_json(folder / "training.json")
    assert training["this_attempt"]["from_step"] == 100 and training["step"] == 180
    # What it went over again came out as before.
    weights = "weights/step_00000150/weights.safetensors"
    assert not differing(load_file(folder / weights), load_file(expected / weights))
    assert [step for step in sorted(losses(folder))] == list(range(5, 181, 5))


# A cluster of two nodes


@pytest.fixture(scope="module")
def two_nodes():
    """Two raylets of one CPU each."""
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.pop("PYTHONPATH")
        os.environ |= {"PYTHONPATH": before} if before is not None else {}


def test_workers_on_two_nodes_train_as_on_one(place, whole, two_nodes):
    words = (*TINY, "name=spread", "tracking=off", f"cluster.address={two_nodes.address}")
    command = Command(place, "train", *words)
    folder = folder_of(place, "spread")
    command.wait_for(folder / "progress.json")
    titles = _titles(two_nodes)
    outcome = command.wait()
    assert outcome.code == 0, outcome.said
    assert [sum("RayTrainWorker" in title for title in of_node) for of_node in titles] == [1, 1]
    expected = folder_of(place, "whole")
    assert trajectory(folder) == trajectory(expected)
    assert not differing(checkpoint_state(folder), checkpoint_state(expected))


def _titles(cluster: Any) -> list[list[str]]:
    """What the processes of each node say that they are doing."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()]
    titles: list[list[str]] = [[] for _ in raylets]
    for of_node, raylet in zip(titles, raylets, strict=True):
        for process in psutil.Process(raylet).children():
            with suppress(psutil.Error):
                of_node.append("".join(process.cmdline()[:1]))
    return titles


def test_validation_on_a_spare_cpu_finds_the_same(place, two_nodes):
    """The cluster of two CPUs has none to spare for two workers: there they validate in turn with training."""
    third = two_nodes.add_node(num_cpus=1)
    try:
        words = (*TINY, "name=spare", "tracking=off", f"cluster.address={two_nodes.address}")
        command = Command(place, "train", *words)
        seen: set[str] = set()
        while command.process.poll() is None:
            seen |= {title for of_node in _titles(two_nodes) for title in of_node}
            time.sleep(0.05)
        outcome = command.wait()
        assert outcome.code == 0, outcome.said
        assert "ray::validate_snapshot" in seen
    finally:
        two_nodes.remove_node(third)
    spare, in_turn = (read_json(folder_of(place, name) / "training.json") for name in ("spare", "spread"))
    assert [one["step"] for one in spare["validations"]] == [50, 100, 150]
    assert in_turn["validations"][-1]["bleu"] > 0
    for found, expected in zip(spare["validations"], in_turn["validations"], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert not differing(checkpoint_state(folder_of(place, "spare")), checkpoint_state(folder_of(place, "spread")))


def test_every_engine_and_number_of_workers_takes_the_same_steps(place, two_nodes, monkeypatch):
    """Twelve steps each, which warm up to a high learning rate; all runs of a number of workers in one worker group,
    since the start of a group takes longer than all of them."""
    monkeypatch.chdir(place)
    engines = ("torch", "zero0", "zero1", "zero2", "zero3")
    kinds = [(engine, precision, 2) for engine in engines for precision in ("fp32", "bf16")]
    kinds += [("torch", "fp32", 1), ("zero1", "fp32", 1)]
    # Four micro-batches a step: with two, their sum would be the same in any order.
    short = (
        "batch.tokens=1024",
        "train.max_steps=12",
        "train.log_every=1",
        "train.validate_every=12",
        "train.checkpoint_every=12",
    )
    found: dict[tuple[str, str, int], list[float]] = {}
    with ray_session(ClusterConfig(address=two_nodes.address)):
        prepared = prepare_stage(load_config(TINY))
        for count in (2, 1):
            runs = {
                kind: run_for(load_config([*TINY, *short, *_words(kind), "tracking=off"]), prepared)
                for kind in kinds
                if kind[2] == count
            }
            _train_all(list(runs.values()), count)
            for kind, run in runs.items():
                assert read_json(run.folder / "training.json")["world_size"] == count
                found[kind] = [loss for _, loss in sorted(losses(run.folder).items())]

    expected = found["torch", "fp32", 2]
    assert len(expected) == 12 and expected[-1] < expected[0] - 0.5
    for (engine, precision, count), found_losses in found.items():
        tolerance = {"fp32": 1e-5, "bf16": 2e-3}[precision]
        assert found_losses == pytest.approx(expected, rel=tolerance), (engine, precision, count)


def _words(kind: tuple[str, str, int]) -> tuple[str, ...]:
    engine, precision, workers = kind
    name = f"{engine}-{precision}-{workers}"
    return f"engine={engine}", f"precision={precision}", f"cluster.num_workers={workers}", f"name={name}"


def _train_all(runs: list[Run], num_workers: int) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from jobs.process_group import NodeInterfaceConfig

    def train_in_turn(folders: list[str]) -> list[dict[str, Any]]:
        return [train_worker({"folder": folder, "spare_cpus": 0}) for folder in folders]

    trainer = TorchTrainer(
        lambda settings: train_in_turn(settings["folders"]),
        train_loop_config={"folders": [str(run.folder) for run in runs]},
        scaling_config=ScalingConfig(num_workers=num_workers, resources_per_worker={"CPU": 1}),
        torch_config=NodeInterfaceConfig(backend="gloo"),
        run_config=RunConfig(
            name=f"all-{num_workers}",
            storage_path=str(runs[0].folder / "ray"),
            worker_runtime_env={"env_vars": {**ALLOCATOR, "DS_ACCELERATOR": "cpu"}},
        ),
    )
    assert trainer.fit().return_value == [{"reason": "max_steps"}] * len(runs)
