"""Attempts, without Ray: how often workers are started again, with how many, and when the watch ends an attempt."""

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from transloom.jobs.config.compose import load_config
from transloom.jobs.config.schema import ClusterConfig, Config
from transloom.jobs.ray_cluster import patches as ray_patches
from transloom.jobs.ray_cluster.watch import ended_by_loss
from transloom.jobs.runs.stopping import watched
from transloom.jobs.runs.workspace import Run
from transloom.jobs.training import attempts
from transloom.jobs.training.attempts import train_in_attempts
from transloom.jobs.training.heartbeat import Heartbeat, Worker, end_processes, read_heartbeats
from transloom.jobs.training.trainer import cause_of
from transloom.jobs.training.worker import _asked_to_stop
from transloom.pipeline.errors import UserError
from transloom.pipeline.run_folder import RESTART_FILE, STOP_FILE, WORKERS_FOLDER
from transloom.pipeline.train.engine import PrecisionConfig
from transloom.pipeline.train.optimizer import Precision

DIED = RuntimeError("The actor died unexpectedly: the process has died")
LOST = RuntimeError("[/gloo/pair.cc:553] Connection closed by peer [192.0.2.2]:2444")


class Cluster:
    """Stands in the place of Ray: nodes with CPUs, and trainers whose attempts go as `course` says."""

    def __init__(self, monkeypatch, folder: Path, nodes: dict[str, int], course: list[Callable[[Any], Any]]) -> None:
        self.nodes, self.course, self.going = nodes, course, set[str]()
        self.num_workers: list[int] = []
        self.folder = folder
        (folder / STOP_FILE).write_bytes(b"")
        for name in ("SECONDS_FOR_MORE", "REST_SECONDS", "SECONDS_BEFORE_GROWTH"):
            monkeypatch.setattr(attempts, name, 0.05)
        monkeypatch.setattr(attempts, "make_trainer", self._make_trainer)
        monkeypatch.setattr(attempts, "spare_cpus", lambda cluster: 0)
        monkeypatch.setattr(attempts, "living_nodes", self._living_nodes)
        monkeypatch.setattr(ray_patches, "free_resources", lambda: {name: {"CPU": nodes[name]} for name in nodes})
        monkeypatch.setattr(ray_patches, "draining_nodes", lambda: self.going)

    def _living_nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": name, "Resources": {"CPU": cpus}} for name, cpus in self.nodes.items()]

    def _make_trainer(
        self, worker: Any, settings: dict[str, Any], cluster: ClusterConfig, folder: Path, start_retries: int
    ) -> Any:
        assert start_retries == 0, "Ray would retry what is counted here"
        self.num_workers.append(cluster.num_workers)
        trainer = SimpleNamespace(settings=settings, cluster=cluster)
        trainer.fit = lambda: SimpleNamespace(return_value=self.course.pop(0)(trainer))
        return trainer

    def train(self, **cluster: Any) -> None:
        config = Config(
            precision=PrecisionConfig(Precision.fp32), cluster=ClusterConfig(**{"address": "here:1", **cluster})
        )
        train_in_attempts(Run("mine", self.folder, config), validate_on_spare_cpus=False)


def finishes(trainer: Any) -> dict[str, str]:
    return {"reason": "max_steps"}


def dies(trainer: Any) -> None:
    raise WorkerGroupError("workers failed", {0: LOST, 1: DIED})


def does_not_start(trainer: Any) -> None:
    raise ControllerError(RuntimeError("At least one of the worker actors failed to initialize."))


def makes_way(node: str, change: Callable[[], object]) -> Callable[[Any], dict[str, str]]:
    """An attempt that takes steps until it is asked to save and end."""

    def fit(trainer: Any) -> dict[str, str]:
        signs = Path(trainer.settings["attempt"])
        is_asked = watched(signs / RESTART_FILE)
        trainer.on_workers([Worker(0, node, 0)])
        deadline, steps = time.monotonic() + 20, 0
        change()
        while not is_asked():
            assert time.monotonic() < deadline, "the attempt was never asked to make way"
            steps += 1
            (signs / "rank_0").write_text(json.dumps({"alive": steps, "steps": steps, "doing": ""}))
            time.sleep(0.01)
        return {"reason": "stopped"}

    return fit


def test_retries_are_counted_also_of_workers_that_do_not_start(tmp_path, monkeypatch, capsys):
    cluster = Cluster(monkeypatch, tmp_path, {"a": 2}, [dies, does_not_start, finishes])
    cluster.train(num_workers=2, max_failures=2)
    assert cluster.num_workers == [2, 2, 2]
    first, second = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Restart")]
    assert "the process of worker 1 died" in first and "(failure 1 of 2 allowed)" in first
    assert "failed to initialize" in second and "(failure 2 of 2 allowed)" in second

    cluster = Cluster(monkeypatch, tmp_path, {"a": 2}, [dies, does_not_start, dies, finishes])
    with pytest.raises(UserError, match=r"\(cluster\.max_failures=2\)"):
        cluster.train(num_workers=2, max_failures=2)
    assert len(cluster.num_workers) == 3


@pytest.mark.parametrize(("address", "num_attempts"), [(None, 1), ("here:1", 2)], ids=["own Ray", "a cluster"])
def test_a_full_temporary_folder_of_its_own_ray_costs_no_retry(
    tmp_path, monkeypatch, address: str | None, num_attempts: int
):
    full = f"{tmp_path}: no room for Ray's temporary files"
    monkeypatch.setattr(attempts, "temp_folder_trouble", lambda: full)
    cluster = Cluster(monkeypatch, tmp_path, {"a": 2}, [dies, finishes])
    try:
        cluster.train(num_workers=2, max_failures=2, address=address)
        message = None
    except UserError as error:
        message = str(error)
    assert len(cluster.num_workers) == num_attempts
    # The files of a cluster's Ray are on other machines, so nothing is known of them.
    assert message == (None if address else f"{full}. Checkpoints are kept: the same command goes on")


def test_nodes_leave_and_come(tmp_path, monkeypatch, capsys):
    nodes = {"a": 1, "b": 1}

    def loses_a_node(trainer: Any) -> None:
        del nodes["b"]
        dies(trainer)

    grows = makes_way("a", lambda: nodes.update(b=1))
    cluster = Cluster(monkeypatch, tmp_path, nodes, [loses_a_node, grows, finishes])
    cluster.train(num_workers=2, min_workers=1)
    assert cluster.num_workers == [2, 1, 2]
    said = capsys.readouterr().out
    assert "there is room for 2 workers now" in said and said.count("allowed)") == 1


def test_a_fixed_number_of_workers_waits_for_the_lost_node(tmp_path, monkeypatch):
    nodes = {"a": 1, "b": 1}

    def loses_a_node(trainer: Any) -> None:
        del nodes["b"]
        threading.Timer(0.3, lambda: nodes.update(c=1)).start()
        dies(trainer)

    cluster = Cluster(monkeypatch, tmp_path, nodes, [loses_a_node, finishes])
    cluster.train(num_workers=2)
    assert cluster.num_workers == [2, 2] and "c" in nodes

    monkeypatch.setattr(attempts, "MINUTES_WITHOUT_ROOM", 0.01)
    cluster = Cluster(monkeypatch, tmp_path, {"a": 1}, [finishes])
    with pytest.raises(UserError, match=r"^cluster\.num_workers: .* no room for 2 workers"):
        cluster.train(num_workers=2)
    assert cluster.num_workers == []


def test_a_node_that_drains_costs_no_retry(tmp_path, monkeypatch, capsys):
    cluster = Cluster(monkeypatch, tmp_path, {"a": 1, "b": 1}, [])
    cluster.course = [makes_way("b", lambda: cluster.going.add("b")), finishes]
    cluster.train(num_workers=2, min_workers=1, max_failures=0)
    assert cluster.num_workers == [2, 1]
    said = capsys.readouterr().out
    assert "a node is going away (worker 0)" in said and "allowed" not in said


def test_a_stop_is_obeyed_between_attempts(tmp_path, monkeypatch):
    def is_stopped_and_dies(trainer: Any) -> None:
        (tmp_path / STOP_FILE).write_bytes(b"SIGTERM\n")
        dies(trainer)

    cluster = Cluster(monkeypatch, tmp_path, {"a": 1}, [is_stopped_and_dies, finishes])
    cluster.train()
    assert cluster.num_workers == [1]


def test_what_a_worker_refuses_is_not_retried(tmp_path, monkeypatch):
    cluster = Cluster(monkeypatch, tmp_path, {"a": 1}, [lambda trainer: {"user_error": "corpus.path: is gone"}])
    with pytest.raises(UserError, match=r"^corpus\.path"):
        cluster.train()


HANGS = """
import sys, time
from pathlib import Path
from transloom.jobs.training.heartbeat import Heartbeat
heartbeat = Heartbeat(Path(sys.argv[1]), 1, float(sys.argv[2]))
for _ in range(3):
    heartbeat.advance()
print("steps", flush=True)
def stands_still():
    while True:
        time.sleep(0.01)
stands_still()
"""


@pytest.mark.parametrize("is_frozen", [True, False], ids=["frozen", "in a loop"])
def test_a_worker_that_hangs_is_ended_with_its_stack(tmp_path, monkeypatch, is_frozen):
    """Rank 1 is a real process; rank 0 waits for it, as in a collective."""
    monkeypatch.setattr("transloom.jobs.training.heartbeat.SECONDS_FOR_STACKS", 0.3)
    import ray

    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "a"))
    limit = 1.2
    seconds = {}

    def hangs(trainer: Any) -> None:
        signs = trainer.settings["attempt"]
        command = [sys.executable, "-c", HANGS, signs, str(limit)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "steps\n"
            mine = Heartbeat(Path(signs), 0, limit)
            mine.advance()
            trainer.on_workers([Worker(0, "a", process.pid), Worker(1, "a", process.pid)])
            if is_frozen:
                process.send_signal(signal.SIGSTOP)
            started_at = time.monotonic()
            process.wait(30)
            seconds["until the end"] = time.monotonic() - started_at
        dies(trainer)

    cluster = Cluster(monkeypatch, tmp_path, {"a": 2}, [hangs, finishes])
    cluster.train(num_workers=2, hang_minutes=limit / 60)
    assert cluster.num_workers == [2, 2]
    assert 0.3 < seconds["until the end"] < 2 * limit + 10  # to spare for a busy machine; the killing comes within both
    text = (tmp_path / "stacks" / "attempt_1_rank_1.txt").read_text()
    assert text.startswith("rank 1, process ")
    assert ("stopped" in text) if is_frozen else ("stands_still" in text)


def test_workers_that_never_start_are_given_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(attempts, "SECONDS_TO_START", 0.3)
    seconds = {}

    def never_starts(trainer: Any) -> None:
        time.sleep(0.6)  # waiting for places has a limit of Ray's own
        given_up, started_at = threading.Event(), time.monotonic()
        trainer.on_places(given_up.set)
        assert given_up.wait(20)
        seconds["until given up"] = time.monotonic() - started_at
        does_not_start(trainer)

    def starts_late(trainer: Any) -> dict[str, str]:
        given_up = threading.Event()
        trainer.on_places(given_up.set)
        trainer.on_workers([Worker(0, "a", 0), Worker(1, "a", 0)])
        assert not given_up.wait(0.6)
        return finishes(trainer)

    cluster = Cluster(monkeypatch, tmp_path, {"a": 2}, [never_starts, starts_late])
    cluster.train(num_workers=2, max_failures=1, hang_minutes=0.2 / 60)
    assert cluster.num_workers == [2, 2]
    assert 0.3 <= seconds["until given up"] < 10
    (restart,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Restart")]
    assert "did not start within 0.3 s (cluster.hang_minutes)" in restart and "(failure 1 of 1 allowed)" in restart

    with pytest.raises(UserError, match=r"\(cluster\.max_failures=0\): .*did not start"):
        Cluster(monkeypatch, tmp_path, {"a": 2}, [never_starts]).train(max_failures=0, hang_minutes=0.2 / 60)


def test_slow_phases_may_take_ten_times_as_long():
    sign = attempts._Sign()
    sign.take({"alive": 1, "steps": 3, "doing": "validating"}, now=100.0)
    assert sign.doing == "validating" and sign.step_at == 100.0
    sign.take({"alive": 2, "steps": 3, "doing": "validating"}, now=150.0)
    assert (sign.alive_at, sign.step_at) == (150.0, 100.0)


def test_signs_of_life_are_read_as_written(tmp_path):
    heartbeat = Heartbeat(tmp_path, 3, 1.0)
    heartbeat.advance()
    heartbeat.begin("saving a checkpoint")
    deadline = time.monotonic() + 10
    while read_heartbeats(tmp_path).get(3, {}).get("doing") != "saving a checkpoint":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert read_heartbeats(tmp_path)[3]["steps"] == 1
    (tmp_path / "rank_4").write_bytes(b'{"alive": 1, "st')
    assert set(read_heartbeats(tmp_path)) == {3}


def test_workers_of_an_attempt_that_is_over_end(tmp_path):
    """On a node that was cut off they live on; their files are gone."""
    folder = tmp_path / WORKERS_FOLDER / "1-1"
    folder.mkdir(parents=True)
    stop, restart = tmp_path / STOP_FILE, folder / RESTART_FILE
    stop.write_bytes(b"")
    restart.write_bytes(b"")
    heartbeat = Heartbeat(folder, 0, 0.0)
    is_asked = _asked_to_stop(stop, restart, heartbeat, is_first=True)
    assert not is_asked()
    restart.unlink()
    time.sleep(0.25)
    with pytest.raises(FileNotFoundError):
        is_asked()


def test_processes_are_ended_where_one_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr("transloom.jobs.training.heartbeat.SECONDS_FOR_STACKS", 0.0)
    with subprocess.Popen(["sleep", "60"]) as process:
        gone = subprocess.Popen(["true"])
        gone.wait()
        end_processes([Worker(0, "a", gone.pid), Worker(1, "a", process.pid)], tmp_path, tmp_path / "stacks", 2)
        assert process.wait(10) < 0
    assert "gone" in (tmp_path / "stacks" / "attempt_2_rank_0.txt").read_text()


def test_workers_that_ray_ended_for_memory_leave_no_places_reserved(monkeypatch):
    """The next attempt would wait for the places until it gives up."""
    import ray
    from ray.exceptions import OutOfMemoryError
    from ray.train.v2._internal.execution import controller
    from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState

    groups: list[Any] = []

    class Controller:
        worker_group_cls: Any

        async def run(self) -> None:
            groups.append(object.__new__(self.worker_group_cls))

        def get_result(self) -> None:
            pass

    class Hook(WorkerGroupCallback):
        def before_worker_group_shutdown(self, worker_group: Any) -> None:
            raise OutOfMemoryError("2 worker(s) were killed due to the node running low on memory.")

    monkeypatch.setattr(controller, "TrainController", Controller)
    monkeypatch.setattr(logging.getLogger("ray.train"), "handlers", [logging.NullHandler()])
    trainer = object.__new__(ray_patches.trainer_class())
    trainer._initialize_and_run_controller()
    (group,) = groups
    removed: list[str] = []
    places = SimpleNamespace(shutdown=lambda: removed.append("the places"))
    group._worker_group_state = WorkerGroupState(0.0, cast(Any, places), [], cast(Any, None))
    group._callbacks, group._worker_group_context, group._world_rank_to_ongoing_poll = [Hook()], None, {}
    try:
        with pytest.raises(OutOfMemoryError):
            group.shutdown()
    finally:
        ray.shutdown()  # Ray Train's code has started one
    assert removed == ["the places"] and not group.has_started()


MEMORY = RuntimeError(
    "A worker health check failed.\nWorker info: Worker(...)\n"
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.1) was 3.1GB"
)


def test_a_shortage_of_memory_is_named_with_what_helps():
    causes = [cause_of(WorkerGroupError("x", {0: other, 1: MEMORY})) for other in (DIED, LOST)]
    causes += [cause_of(ControllerError(MEMORY))]
    assert all("memory" in cause and "batch.micro_tokens" in cause and "\n" not in cause for cause in causes)
    assert all("cluster.num_workers" in cause and "cluster.cpus_per_worker" in cause for cause in causes)
    assert causes[0] == causes[1] and "ended worker 1," in causes[0] and "a worker that started" in causes[2]


def test_the_cause_is_what_came_first():
    assert cause_of(WorkerGroupError("x", {0: LOST, 1: ValueError("a bug")})) == "worker 1: ValueError: a bug"
    assert cause_of(WorkerGroupError("x", {0: LOST})).startswith("a worker was lost")


def test_a_lost_cluster_ends_the_command_with_a_sentence(monkeypatch):
    monkeypatch.setattr("transloom.jobs.ray_cluster.watch.SECONDS_BETWEEN_LOOKS", 0.05)
    lost = threading.Event()
    threading.Timer(0.2, lost.set).start()
    started_at = time.monotonic()
    with (
        pytest.raises(UserError, match=r"^the head node is gone.* The same command goes on"),
        ended_by_loss(lambda: "the head node" if lost.is_set() else None, "The same command goes on"),
    ):
        time.sleep(30)
    assert time.monotonic() - started_at < 10
    with pytest.raises(ZeroDivisionError), ended_by_loss(lambda: None, ""):
        print(1 / 0)


def test_a_command_that_can_not_end_is_ended():
    """What stands between the loss and the end, Ray's own shutdown above all, may wait for what is gone."""
    code = """
import time
from transloom.jobs.ray_cluster import watch as ray_watch
ray_watch.SECONDS_BETWEEN_LOOKS, ray_watch.SECONDS_TO_END = 0.05, 0.3
with ray_watch.ended_by_loss(lambda: "the head node", "Go on."):
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr == "transloom: the head node is gone: was it killed, or was memory short? Go on.\n"


def test_a_range_of_workers():
    def workers(*words: str) -> tuple[int, int | None]:
        cluster = load_config(
            ["tokenizer.vocab_size=500", "batch.tokens=8192", "batch.micro_tokens=1024", *words]
        ).cluster
        return cluster.num_workers, cluster.min_workers

    assert workers("cluster.num_workers=[2,8]") == (8, 2)
    assert workers("cluster.num_workers=[2, 8]", "cluster.num_workers=4") == (4, None)
    assert workers("cluster.num_workers=4", "cluster.min_workers=3") == (4, 3)
    for word in ("cluster.num_workers=[3,2]", "cluster.num_workers=[0,2]"):
        with pytest.raises(UserError, match=r"cluster\.min_workers"):
            workers(word)
    with pytest.raises(UserError, match=r"cluster\.hang_minutes"):
        workers("cluster.hang_minutes=-1")
