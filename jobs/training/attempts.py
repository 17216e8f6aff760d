"""Attempts: a training goes on through the loss of workers and nodes, and through hangs.

An attempt is a group of workers. `train_in_attempts` starts the next attempt from the newest checkpoint when a worker
has died or hangs, when a node is going away, or when more workers fit. An `Attempt` starts its workers and watches
them.
"""

import dataclasses
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from transloom.jobs.config.schema import ClusterConfig
from transloom.jobs.ray_cluster.session import (
    living_nodes,
    room_for_workers,
    spare_cpus,
    start_on_nodes,
    temp_folder_trouble,
)
from transloom.jobs.runs.workspace import Run
from transloom.jobs.terminal.console import console
from transloom.jobs.training.heartbeat import REST_SECONDS, Worker, end_processes, read_heartbeats
from transloom.jobs.training.initial import bring_initial
from transloom.jobs.training.trainer import cause_of, make_trainer
from transloom.jobs.training.worker import train_worker
from transloom.pipeline.disk import disk_trouble
from transloom.pipeline.errors import UserError
from transloom.pipeline.run_folder import (
    CHECKPOINTS_FOLDER,
    RAY_FOLDER,
    RESTART_FILE,
    STACKS_FOLDER,
    STOP_FILE,
    TRAINING_FILE,
    WORKERS_FOLDER,
)
from transloom.pipeline.train.checkpoint import newest_checkpoint

MINUTES_WITHOUT_ROOM = 10  # Ray's default, a minute's wait repeated for ever, looks like a hang
SECONDS_FOR_MORE = 10.0  # that an elastic training waits for room for all workers before it starts with fewer
SECONDS_BEFORE_GROWTH = (
    30.0  # of steps before a training restarts with more workers: nodes often join one after another
)
SLOW_PHASES = 10.0  # starting, validating and saving may take this factor times the limit of a step
SECONDS_TO_START = 180.0  # the least limit for the workers' processes to start on their places
SECONDS_FOR_NODE = 60.0  # for a node to dump the stacks of its workers

log = logging.getLogger(__name__)


def train_in_attempts(run: Run, validate_on_spare_cpus: bool) -> None:
    """Starts workers until the training ends. The workers save a checkpoint and end earlier if the run's file `stop`,
    which the caller has emptied, is written to.

    Args:
        validate_on_spare_cpus: whether validations may use CPUs that the workers leave free.
    Raises:
        UserError: a worker's own UserError, the retries are used up, or the cluster has no room for the workers.
    """
    from ray.train.v2.api.exceptions import TrainingFailedError

    from transloom.jobs.ray_cluster.patches import is_startup_timeout

    bring_initial(run)
    (run.folder / TRAINING_FILE).unlink(missing_ok=True)
    failures = 0
    room_by = time.monotonic() + 60 * MINUTES_WITHOUT_ROOM
    number = 0
    while not (run.folder / STOP_FILE).stat().st_size:
        number += 1
        num_workers = _workers_for_now(run, room_by)
        cluster = dataclasses.replace(run.config.cluster, num_workers=num_workers, min_workers=None)
        with Attempt(run, number, cluster) as attempt:
            try:
                outcome = attempt.train(validate_on_spare_cpus)
                if "user_error" in outcome:
                    raise UserError(outcome["user_error"])
                if outcome.get("reason") != "stopped" or not attempt.makes_way_for:
                    return
                reason, is_failure = attempt.makes_way_for, False
            except TrainingFailedError as error:
                if message := disk_trouble(error, run.folder):
                    raise UserError(message) from error
                if not run.config.cluster.address and (message := temp_folder_trouble()):
                    raise UserError(f"{message}. Checkpoints are kept: the same command goes on") from error
                if is_startup_timeout(error):  # another job took the room first
                    if time.monotonic() > room_by:
                        raise _no_room(run) from error
                    continue
                reason = attempt.hang or attempt.makes_way_for or cause_of(error)
                is_failure = bool(attempt.hang or not attempt.makes_way_for)  # an announced end of a node is no failure
                failures += is_failure
                if failures > run.config.cluster.max_failures:
                    raise UserError(
                        "training failed, and no retries are left "
                        f"(cluster.max_failures={run.config.cluster.max_failures}): {reason}. "
                        "Checkpoints are kept: the same command goes on from the newest"
                    ) from error
        newest = newest_checkpoint(run.folder / CHECKPOINTS_FOLDER)
        start = f"goes on from {newest.name}" if newest else "begins anew: there is no checkpoint yet"
        tries = f" (failure {failures} of {run.config.cluster.max_failures} allowed)" if is_failure else ""
        console.print(f"Restart     {reason.partition(chr(10))[0]}; the training {start}{tries}")
        room_by = time.monotonic() + 60 * MINUTES_WITHOUT_ROOM


def _workers_for_now(run: Run, room_by: float) -> int:
    """The number of workers of the next attempt. Waits for room; if the number is fixed, nodes that other jobs use
    count as room, too.

    Raises:
        UserError: there is still no room at `room_by`.
    """
    cluster = run.config.cluster
    settled_at = time.monotonic() + SECONDS_FOR_MORE
    while not (run.folder / STOP_FILE).stat().st_size:
        room = room_for_workers(cluster, _resources(of_all=cluster.min_workers is None))
        if room >= cluster.num_workers:
            break
        if cluster.min_workers is not None and room >= cluster.min_workers and time.monotonic() > settled_at:
            return room
        if time.monotonic() > room_by:
            raise _no_room(run)
        time.sleep(REST_SECONDS)
    return cluster.num_workers


def _no_room(run: Run) -> UserError:
    cluster = run.config.cluster
    return UserError(
        f"cluster.num_workers: for {MINUTES_WITHOUT_ROOM} minutes the cluster had no room for "
        f"{cluster.fewest_workers} workers any more; was a machine lost? Checkpoints are kept: "
        f"the same command goes on from the newest, resume={run.name} cluster.num_workers=<fewer> with what is left"
    )


def _resources(of_all: bool = False) -> list[dict[str, float]]:
    """The free resources, or all resources, of each node that is not going away."""
    from transloom.jobs.ray_cluster.patches import draining_nodes, free_resources

    going = draining_nodes()
    nodes = [node for node in living_nodes() if node["NodeID"] not in going]
    if of_all:
        return [node["Resources"] for node in nodes]
    free = free_resources()
    return [free.get(node["NodeID"], {}) for node in nodes]


class Attempt:
    """A group of workers, which `train` runs to its end, and the thread that watches them. If a worker hangs, the
    thread ends all workers. If a node is going away or more workers fit, the thread asks the workers to save a
    checkpoint and end.

    Attributes:
        hang: the workers that hung or did not start, in words; None: no hang.
        makes_way_for: why the workers were asked to end, in words; None: they were not.
    """

    def __init__(self, run: Run, number: int, cluster: ClusterConfig) -> None:
        self.hang: str | None = None
        self.makes_way_for: str | None = None
        self._run, self._number, self._cluster = run, number, cluster
        # Each attempt has its own folder: an earlier attempt's workers, on a node that was cut off, miss it and end.
        self._folder = run.folder / WORKERS_FOLDER / f"{number}-{uuid.uuid4().hex}"
        self._limit = 60 * run.config.cluster.hang_minutes
        self._workers: list[Worker] = []
        self._placed_at = float("inf")
        self._give_up: Callable[[], object] = lambda: None
        self._seen: dict[int, _Sign] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="watch", daemon=True)

    def __enter__(self) -> "Attempt":
        shutil.rmtree(self._folder.parent, ignore_errors=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / RESTART_FILE).write_bytes(b"")
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        self._make_way("the attempt is over")  # for workers that a lost Ray did not end

    def train(self, validate_on_spare_cpus: bool) -> dict[str, Any]:
        """What the workers return: "reason", or "user_error".

        Raises:
            TrainingFailedError: of Ray; a worker died or did not start.
        """
        use_gpu = self._cluster.gpus_per_worker > 0
        spare = spare_cpus(self._cluster) if validate_on_spare_cpus and not use_gpu else 0
        settings = {
            "folder": str(self._run.folder),
            "attempt": str(self._folder),
            "spare_cpus": spare,
            "hang_seconds": self._limit,
        }
        folder = self._run.folder / RAY_FOLDER
        trainer = make_trainer(train_worker, settings, self._cluster, folder, start_retries=0)
        # Called by `Workers` in jobs/ray_cluster/patches.py.
        trainer.on_places, trainer.on_workers = self._set_places, self._set_workers
        return trainer.fit().return_value or {}

    def _set_places(self, give_up: Callable[[], object]) -> None:
        """Called when the workers have CPUs and GPUs, before their processes start; `give_up` ends the start."""
        self._give_up, self._placed_at = give_up, time.monotonic()

    def _set_workers(self, workers: list[Worker]) -> None:
        """Called when the workers' processes have started, before they train."""
        self._seen = {worker.rank: _Sign() for worker in workers}
        self._workers = workers

    def _look_on(self) -> None:
        rest = min(REST_SECONDS, self._limit / 10) if self._limit else REST_SECONDS
        looks: list[Callable[[], None]] = [self._look_for_hang] if self._limit else []
        if self._run.config.cluster.address:  # a cluster's nodes may change
            looks += [self._look_for_drain]
            if self._run.config.cluster.min_workers is not None:
                looks += [self._look_for_room]
        while not self._over.wait(rest):
            if not self.hang:
                for look in looks if self._workers else [self._look_for_start]:
                    try:
                        look()
                    except Exception:  # the cluster is busy, or going down, which the training notices
                        log.debug("the watch over the workers", exc_info=True)

    def _look_for_start(self) -> None:
        limit = max(SECONDS_TO_START, self._limit)
        if self._limit and time.monotonic() - self._placed_at > limit:
            self.hang = (
                f"the workers' processes did not start within {limit:g} s (cluster.hang_minutes); is a node very busy, "
                "or short of memory?"
            )
            self._give_up()

    def _look_for_hang(self) -> None:
        now = time.monotonic()
        beats = read_heartbeats(self._folder)
        for worker in self._workers:
            self._seen[worker.rank].take(beats.get(worker.rank), now)
        signs = self._seen.items()
        late = {
            rank
            for rank, sign in signs
            if now - sign.alive_at > self._limit * (1 if sign.alive else SLOW_PHASES)
            or now - sign.step_at > self._limit * (SLOW_PHASES if sign.doing else 1)
        }
        if late:
            # All workers wait for a hanging worker; the workers without a sign of life are the cause.
            silent = [rank for rank, sign in signs if now - sign.alive_at > self._limit / 2]
            how, hung = ("gave no sign of life", silent) if silent else ("took no step", sorted(late))
            names = f"worker {hung[0]}" if len(hung) == 1 else f"the workers {', '.join(map(str, hung))}"
            self.hang = f"{names} {how} for {self._limit:g} s (cluster.hang_minutes)"
            self._end_workers()

    def _end_workers(self) -> None:
        """Dumps the stacks of all workers into the run's folder, then ends them, each on its node."""
        import ray

        folder = self._run.folder / STACKS_FOLDER
        here = ray.get_runtime_context().get_node_id()
        by_node: dict[str, list[Worker]] = {}
        for worker in self._workers:
            by_node.setdefault(worker.node, []).append(worker)
        elsewhere = [node for node in living_nodes() if node["NodeID"] in by_node and node["NodeID"] != here]
        arguments = [(by_node[node["NodeID"]], self._folder, folder, self._number) for node in elsewhere]
        tasks = start_on_nodes(elsewhere, end_processes, arguments)
        if here in by_node:
            end_processes(by_node[here], self._folder, folder, self._number)
        if tasks:
            ray.wait(tasks, num_returns=len(tasks), timeout=SECONDS_FOR_NODE)
        self.hang = f"{self.hang}; the stacks are in {folder}"

    def _look_for_drain(self) -> None:
        from transloom.jobs.ray_cluster.patches import draining_nodes

        going = draining_nodes()
        ranks = [str(worker.rank) for worker in self._workers if worker.node in going]
        if ranks:
            self._make_way(f"a node is going away (worker {', '.join(ranks)})")

    def _look_for_room(self) -> None:
        if any(sign.step_at - sign.first_step_at < SECONDS_BEFORE_GROWTH for sign in self._seen.values()):
            return
        more = room_for_workers(self._cluster, _resources())
        missing = self._run.config.cluster.num_workers - self._cluster.num_workers
        if more and missing:
            self._make_way(f"there is room for {self._cluster.num_workers + min(more, missing)} workers now")

    def _make_way(self, reason: str) -> None:
        if self.makes_way_for is None:
            with suppress(OSError):
                (self._folder / RESTART_FILE).write_bytes(reason.encode())
            self.makes_way_for = reason


class _Sign:
    """The last sign of a worker, with its time by this process's monotonic clock: other machines' clocks may differ."""

    def __init__(self) -> None:
        self.alive, self.steps, self.doing = 0, 0, "starting"
        self.alive_at = self.step_at = time.monotonic()
        self.first_step_at = float("inf")

    def take(self, beat: dict[str, Any] | None, now: float) -> None:
        if beat is None:
            return
        if beat["alive"] != self.alive:
            self.alive, self.alive_at = beat["alive"], now
        if (beat["steps"], beat["doing"]) != (self.steps, self.doing):
            if beat["steps"] and not self.steps:
                self.first_step_at = now
            self.steps, self.doing, self.step_at = beat["steps"], beat["doing"], now
