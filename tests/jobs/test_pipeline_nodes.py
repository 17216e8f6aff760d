"""A cluster of two nodes: where the workers are changes nothing, nor do their number and the engine."""

import dataclasses
import multiprocessing
import os
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import ROOT, TINY, Command
from runs import checkpoint_state, differing, folder_of, losses, trajectory

from transloom.jobs.config.compose import load_config
from transloom.jobs.config.schema import ClusterConfig
from transloom.jobs.ray_cluster import preflight
from transloom.jobs.ray_cluster.patches import few_processes
from transloom.jobs.ray_cluster.preflight import check_cluster, checked_session
from transloom.jobs.ray_cluster.session import ray_session
from transloom.jobs.runs.workspace import Run, run_for
from transloom.jobs.training import attempts, train
from transloom.jobs.training.prepare import prepare_stage
from transloom.jobs.training.trainer import cause_of, make_trainer
from transloom.jobs.training.worker import train_worker
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import read_json
from transloom.pipeline.run_folder import RESTART_FILE, STOP_FILE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_nodes():
    """Two raylets of one CPU each, without a dashboard and its agents."""
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    with few_processes(lambda: None):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        _add_node(cluster)
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.pop("PYTHONPATH")
        os.environ |= {"PYTHONPATH": before} if before is not None else {}


def _add_node(cluster: Any) -> Any:
    with few_processes(lambda: None):
        return cluster.add_node(num_cpus=1)


def _titles(cluster: Any) -> list[list[str]]:
    """What the processes of each node say that they are doing."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()]
    titles: list[list[str]] = [[] for _ in raylets]
    for of_node, raylet in zip(titles, raylets, strict=True):
        for process in psutil.Process(raylet).children():
            with suppress(psutil.Error):
                of_node.append("".join(process.cmdline()[:1]))
    return titles


def test_workers_on_two_nodes_and_a_validation_on_a_third_do_what_one_node_does(place, whole, two_nodes):
    """`whole` has no CPU to spare on two cores: there the workers validate in turn with training."""
    third = _add_node(two_nodes)
    try:
        words = (*TINY, "name=spread", "tracking=off", f"cluster.address={two_nodes.address}")
        command = Command(place, "train", *words)
        seen: list[set[str]] = [set(), set(), set()]
        while command.process.poll() is None:
            for of_node, titles in zip(seen, _titles(two_nodes), strict=True):
                of_node.update(titles)
            time.sleep(0.3)
        outcome = command.wait()
        assert outcome.code == 0, outcome.said
    finally:
        two_nodes.remove_node(third)
    (spare,) = [of_node for of_node in seen if not any("RayTrainWorker" in title for title in of_node)]
    assert "ray::validate_snapshot" in spare
    expected, folder = folder_of(place, "whole"), folder_of(place, "spread")
    assert trajectory(folder) == trajectory(expected)
    assert not differing(checkpoint_state(folder), checkpoint_state(expected))
    beside, in_turn = (read_json(one / "training.json")["validations"] for one in (folder, expected))
    assert [one["step"] for one in beside] == [50, 100, 150]
    assert in_turn[-1]["chrf"] > 1, "there is something to compare; BLEU may still be 0"
    for found, other in zip(beside, in_turn, strict=True):
        assert found == pytest.approx(other, rel=1e-5)


def test_every_engine_and_number_of_workers_takes_the_same_steps(place, two_nodes):
    """Twelve steps each, which warm up to a high learning rate; all runs of a number of workers in one worker group,
    since the start of a group takes longer than all of them."""
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
        "decode=greedy",  # whose scores are not looked at
    )
    # In a process of its own: Ray may cancel the actors of a session that is not a process's first.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        found = process.submit(_train_kinds, place, two_nodes.address, kinds, short).result()
    expected = found["torch", "fp32", 2]
    assert len(expected) == 12 and expected[-1] < expected[0] - 0.5
    for (engine, precision, count), found_losses in found.items():
        tolerance = {"fp32": 1e-5, "bf16": 2e-3}[precision]
        assert found_losses == pytest.approx(expected, rel=tolerance), (engine, precision, count)


def _train_kinds(
    place: Path, address: str, kinds: list[tuple[str, str, int]], short: tuple[str, ...]
) -> dict[tuple[str, str, int], list[float]]:
    """The losses of each kind of run, by its steps."""
    os.chdir(place)
    found: dict[tuple[str, str, int], list[float]] = {}
    with ray_session(ClusterConfig(address=address)):
        prepared = prepare_stage(load_config(TINY))
        for count in (2, 1):
            runs = {
                kind: run_for(load_config([*TINY, *short, *_words(kind), "tracking=off"]), prepared)
                for kind in kinds
                if kind[2] == count
            }
            _train_all(list(runs.values()))
            for kind, run in runs.items():
                assert read_json(run.folder / "training.json")["world_size"] == count
                found[kind] = [loss for _, loss in sorted(losses(run.folder).items())]
    return found


def _words(kind: tuple[str, str, int]) -> tuple[str, ...]:
    engine, precision, workers = kind
    name = f"{engine}-{precision}-{workers}"
    return f"engine={engine}", f"precision={precision}", f"cluster.num_workers={workers}", f"name={name}"


def _train_all(runs: list[Run]) -> None:
    from ray.train.v2.api.exceptions import ControllerError

    def train_in_turn(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        alone = {"spare_cpus": 0, "hang_seconds": 0.0}
        return [train_worker({"folder": folder, "attempt": folder, **alone}) for folder in settings["folders"]]

    cluster = dataclasses.replace(runs[0].config.cluster, max_failures=0)
    folders = [str(run.folder) for run in runs]
    for run in runs:
        (run.folder / STOP_FILE).touch()
        (run.folder / RESTART_FILE).touch()
    trainer = make_trainer(train_in_turn, {"folders": folders}, cluster, runs[0].folder / "ray")
    try:
        result = trainer.fit()
    except ControllerError as error:  # on a busy machine Ray may lose a worker before the worker's process is up
        warnings.warn(f"the workers are started once more: {cause_of(error)}", stacklevel=2)
        time.sleep(10)
        trainer = make_trainer(train_in_turn, {"folders": folders}, cluster, runs[0].folder / "ray")
        result = trainer.fit()
    assert result.return_value == [{"reason": "max_steps"}] * len(runs)


def test_no_room_is_told_and_not_waited_for(place, two_nodes, monkeypatch):
    """The last of this file: after it Ray cancels the actors of the next session of this process."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    monkeypatch.setattr(preflight, "ROOM_SECONDS", 1.0)
    words = (*TINY, "cluster.num_workers=1", f"output_dir={place}/outputs", "tracking=off")
    config = load_config([*words, f"cluster.address={two_nodes.address}"])
    with checked_session(config):
        others = placement_group([{"CPU": 1}] * 2)
        assert others.wait(240)
        with pytest.raises(UserError, match=r"no room for 1 workers of 1 CPU within 1 s: free are 0 CPU"):
            check_cluster(config)
        # Nor where the room is lost later.
        monkeypatch.setattr(attempts, "MINUTES_WITHOUT_ROOM", 1 / 60)
        monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
        run = run_for(dataclasses.replace(config, name="no-room"), prepare_stage(config))
        with pytest.raises(UserError, match="had no room for 1 workers any more"):
            train.train_stage(run)
        remove_placement_group(others)
        assert ray.cluster_resources()["CPU"] == 2
    assert not list((place / "outputs").glob(".seen-by-all-*"))
