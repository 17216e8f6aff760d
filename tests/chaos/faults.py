"""The faults: each function injects one into a training at a random moment, and says what came of it.

    (place, i, step) -> Injection, where i counts a case's injections from 0 and `step` is the random moment.

Raises AssertionError where the fault is not survived.
"""

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

import psutil
from command import Command
from runs import losses

from chaos.report import Injection
from chaos.servers import cluster, failing_server, is_alive, mlflow_server
from chaos.training import (
    WHOLE,
    Place,
    check_close,
    check_points,
    check_same,
    finish,
    from_step,
    last_words,
    logged,
    resume,
    samples,
    start,
    step_times,
    sync,
    wait_for_gone,
    wait_for_recovery,
    wait_for_step,
)
from transloom.pipeline.files import read_json
from transloom.pipeline.train.checkpoint import list_steps, load_weights, newest_checkpoint, verify

Inject = Callable[[Place, int, int], Injection]

# Of a loss, relative, at another number of workers. Sums in another order differ by rounding, which 100 steps at the
# tiny model's high learning rate make larger: 0.2 % was measured.
TOLERANCE = 1e-2
FIRST_TOLERANCE = 1e-5  # of the first step alone, whose weights are still the same
HANG_SECONDS = 15.0
HEAD_SECONDS = 180.0  # within which the command must end when the head node is gone
DOWN_SECONDS = 30.0
STOPPED = re.compile(r"with the checkpoint step_0*(\d+)")


class NotPossible(Exception):
    """This machine can't inject the fault."""


def kill_worker(place: Place, i: int, step: int) -> Injection:
    name = f"worker-{i}"
    command = start(place, name, "cluster.max_failures=1")
    workers = wait_for_step(place, command, name, step)
    place.rng.choice(workers).kill()
    return _recovered(place, command, name, workers, time.monotonic())


def _recovered(
    place: Place, command: Command, name: str, workers: list[psutil.Process], since: float, at_most: int | None = None
) -> Injection:
    """Waits until the command has recovered by itself and ended as if nothing had been."""
    before = logged(place, name)
    wait_for_recovery(command, place.run(name), workers)
    seconds = time.monotonic() - since
    finish(command)
    lost = before - from_step(place, name)
    limit = place.every if at_most is None else at_most
    assert lost <= limit, f"{lost} steps were lost, more than {limit}"
    check_same(place, name)
    return Injection(steps_lost=max(0, lost), recovery_seconds=seconds)


def kill_in_checkpoint(place: Place, i: int, step: int) -> Injection:
    name = f"saving-{i}"
    at = min(place.steps - place.every, -(-step // place.every) * place.every)
    command = start(place, name, "cluster.max_failures=1")
    workers = sorted(wait_for_step(place, command, name, max(1, at - 3)), key=lambda worker: worker.pid)
    folder = place.run(name) / "checkpoints"
    saved = folder / f"step_{at:08d}"
    while not list(folder.glob(f"{saved.name}*")) and command.process.poll() is None:
        time.sleep(0.0005)
    time.sleep(place.rng.uniform(0, place.save_seconds))
    is_half = not saved.exists()
    workers[i % len(workers)].kill()
    killed_at = time.monotonic()
    if (newest := newest_checkpoint(folder)) is not None:
        verify(newest)
    injection = _recovered(place, command, name, workers, killed_at)
    resumed_from = from_step(place, name)
    assert resumed_from in (at, at - place.every), f"went on from step {resumed_from}, not {at - place.every} or {at}"
    return Injection(
        steps_lost=injection.steps_lost,
        recovery_seconds=injection.recovery_seconds,
        figures={"share killed before the rename": float(is_half)},
    )


def kill_before_pointer(place: Place, i: int, step: int) -> Injection:
    name = f"pointer-{i}"
    at = min(place.steps - place.every, -(-step // place.every) * place.every)
    flag = place.folder / f"{name}.killed"
    fault = {"kill_before_pointer": {"step": at, "flag": str(flag)}}
    command = start(place, name, "cluster.max_failures=1", faults=fault)
    workers = wait_for_step(place, command, name, 1)
    while not flag.exists() and command.process.poll() is None:
        time.sleep(0.002)
    injection = _recovered(place, command, name, workers, time.monotonic(), at_most=0)
    assert flag.exists(), "the checkpoint was never between its name and its pointer"
    assert from_step(place, name) == at, f"went on from step {from_step(place, name)}, not {at}"
    return injection


def kill_node(place: Place, i: int, step: int) -> Injection:
    """In turn: another node comes, and training goes on with as many workers; or none does, and there are fewer."""
    name, is_elastic = f"node-{i}", i % 2 == 1
    with cluster(2) as ray:
        number = "[1,2]" if is_elastic else "2"
        words = (f"cluster.num_workers={number}", "cluster.max_failures=1", f"cluster.address={ray.address}")
        command = start(place, name, *words, added=ray.environment)
        wait_for_step(place, command, name, step)
        workers = ray.workers()
        node = place.rng.choice([node for node in ray.nodes if node.workers()])
        node.kill()
        killed_at, before = time.monotonic(), logged(place, name)
        if not is_elastic:
            ray.add()
        left = node.left_over()
        assert not left, f"left of the node: {left}"
        wait_for_recovery(command, place.run(name), workers)
        seconds = time.monotonic() - killed_at
        finish(command)
        wait_for_gone(ray.workers(), 60)
    lost = before - from_step(place, name)
    assert lost <= place.every, f"{lost} steps were lost, more than {place.every}"
    figures = {}
    if is_elastic:
        figures = {"largest difference of a loss with a worker less": check_close(place, name, TOLERANCE)}
    else:
        check_same(place, name)
    return Injection(steps_lost=max(0, lost), recovery_seconds=seconds, figures=figures)


def kill_driver(place: Place, i: int, step: int) -> Injection:
    name = f"driver-{i}"
    uri = f"tracking.uri=sqlite:///{place.folder}/driver.db"
    command = start(place, name, uri)
    workers = wait_for_step(place, command, name, step)
    run_id = read_json(place.run(name) / "run.json")["run_id"]
    command.process.kill()
    killed_at, before = time.monotonic(), logged(place, name)
    command.process.wait()
    again = start(place, name, uri)
    wait_for_gone(workers, 60)
    wait_for_recovery(again, place.run(name), workers)
    seconds = time.monotonic() - killed_at
    finish(again)
    lost = before - from_step(place, name)
    assert lost <= place.every, f"{lost} steps were lost, more than {place.every}"
    check_same(place, name)
    assert run_id in (None, read_json(place.run(name) / "run.json")["run_id"]), "it became another MLflow run"
    check_points(f"sqlite:///{place.folder}/driver.db", place, name, place.run(WHOLE))
    return Injection(steps_lost=max(0, lost), recovery_seconds=seconds)


def kill_head(place: Place, i: int, step: int) -> Injection:
    name = f"head-{i}"
    with cluster(2) as ray:
        command = start(place, name, f"cluster.address={ray.address}", added=ray.environment)
        wait_for_step(place, command, name, step)
        ray.head.kill("gcs_server", "raylet")
        killed_at = time.monotonic()
        try:
            command.process.wait(HEAD_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running {HEAD_SECONDS:g} s after the head node's end") from None
        seconds = time.monotonic() - killed_at
        outcome = finish(command, code=2)
        assert outcome.err.lstrip().startswith("transloom: "), f"no sentence: {last_words(outcome)}"
    with cluster(2) as ray:
        finish(start(place, name, f"cluster.address={ray.address}", added=ray.environment))
    check_same(place, name)
    return Injection(figures={"seconds to the exit": seconds})


def kill_until_spent(place: Place, i: int, step: int) -> Injection:
    name, budget = f"spent-{i}", 2
    command = start(place, name, f"cluster.max_failures={budget}")
    seen = wait_for_step(place, command, name, min(step, 10))
    place.rng.choice(seen).kill()
    for _ in range(budget):
        wait_for_recovery(command, place.run(name), seen)
        fresh = [worker for worker in command.workers() if worker not in seen]
        assert fresh, "a training without workers"
        seen += fresh
        place.rng.choice(fresh).kill()
    outcome = finish(command, code=2)
    assert f"max_failures={budget}" in outcome.err, f"the budget is not named: {last_words(outcome)}"
    finish(start(place, name))
    check_same(place, name)
    return Injection(figures={"retries": float(len(seen) / 2 - 1)})


def truncate(place: Place, i: int, step: int) -> Injection:
    def cut(data: bytearray) -> bytearray:
        return data[: place.rng.randrange(len(data))]

    return _damage(place, f"truncated-{i}", i, cut)


def flip(place: Place, i: int, step: int) -> Injection:
    def flip_one(data: bytearray) -> bytearray:
        data[place.rng.randrange(len(data))] ^= 1 << place.rng.randrange(8)
        return data

    return _damage(place, f"flipped-{i}", i, flip_one)


def _damage(place: Place, name: str, i: int, change: Callable[[bytearray], bytearray]) -> Injection:
    """The undisturbed run, as if its last checkpoint's i-th file had been damaged before its last step was known."""
    folder = place.run(name)
    shutil.copytree(place.run(WHOLE), folder)
    (folder / "training.json").unlink()
    files = sorted((folder / "checkpoints" / f"step_{place.steps:08d}").iterdir())
    file = files[i % len(files)]
    file.write_bytes(change(bytearray(file.read_bytes())))
    outcome = finish(resume(place, name))
    assert str(file) in outcome.out + outcome.err, f"no warning names {file.name}: {last_words(outcome)}"
    lost = place.steps - from_step(place, name)
    assert lost == place.every, f"went back {lost} steps, not {place.every}"
    check_same(place, name)
    return Injection(steps_lost=lost)


def fill_disk(place: Place, i: int, step: int) -> Injection:
    name = f"full-{i}"
    folder = place.run(name) / "checkpoints"
    finish(start(place, name, steps=place.every))
    kept = place.folder / f"{name}.kept"
    shutil.copytree(folder, kept)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    with small_disk(folder, size * 3 // 2):
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        more = (f"train.max_steps={place.steps}", f"train.validate_every={place.steps}")
        outcome = finish(resume(place, name, *more), code=2)
        assert "could not be written" in outcome.err, f"the full disk is not named: {last_words(outcome)}"
        newest = newest_checkpoint(folder)
        assert newest is not None and newest.name == f"step_{place.every:08d}", f"the newest checkpoint is {newest}"
        partial = list(folder.glob("*.tmp*"))
        assert not partial, f"left behind: {partial}"
        subprocess.run(["mount", "-o", f"remount,size={size * 6}", str(folder)], check=True)
        finish(resume(place, name, *more))
        assert from_step(place, name) == place.every
        check_same(place, name)
    return Injection(steps_lost=place.every)


@contextmanager
def small_disk(folder: Path, size: int):
    """Within the block `folder` is a file system of that many bytes.

    Raises:
        NotPossible: only root can mount one.
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NotPossible(f"a small file system could not be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def stop_mlflow(place: Place, i: int, step: int) -> Injection:
    """Down for 30 s in the midst of a training that is longer than that."""
    name = f"mlflow-{i}"
    with mlflow_server(place.folder / name) as server:
        steps = int((DOWN_SECONDS + 60) / place.step_seconds)
        command = start(place, name, f"tracking.uri={server.uri}", steps=steps)
        wait_for_step(place, command, name, 1 + int(steps * 0.2 * step / place.steps))
        deadline = time.monotonic() + 300
        while read_json(place.run(name) / "run.json")["run_id"] is None:
            assert time.monotonic() < deadline and command.process.poll() is None, "no MLflow run was made"
            time.sleep(0.2)
        server.kill()
        down_at = time.time()
        time.sleep(DOWN_SECONDS)
        is_over = (place.run(name) / "training.json").exists() or command.process.poll() is not None
        assert not is_over, "the training ended before MLflow was back"
        up_at = time.time()
        server.start()
        finish(command)
        check_points(server.store, place, name)
    down, up = [], []
    times = step_times(place.run(name))
    for (_, _, before), (_, wall, seconds) in pairwise(times[10:]):
        (down if down_at < wall < up_at else up).append(seconds - before)
    slower = 100 * (median(down) / median(up) - 1)
    assert slower <= 2, f"steps were {slower:.1f} % slower while MLflow was down"
    return Injection(figures={"step time while it was down, in % more": slower})


def mlflow_away(place: Place, i: int, step: int) -> Injection:
    """In turn: it is down from before the start, or from a moment of the training on; and comes back after the end."""
    name = f"away-{i}"
    with mlflow_server(place.folder / name, is_up=i % 2 == 1) as server:
        command = start(place, name, f"tracking.uri={server.uri}")
        if i % 2 == 1:
            wait_for_step(place, command, name, step)
            server.kill()
        finish(command)
        check_same(place, name)
        server.start()
        finish(sync(place, name, server.uri))
        check_points(server.store, place, name, place.run(WHOLE))
    return Injection()


def mlflow_fails(place: Place, i: int, step: int) -> Injection:
    """In turn: each request is answered with 500, or so only after 30 s."""
    name = f"failing-{i}"
    with failing_server(0 if i % 2 == 0 else 30) as uri:
        finish(start(place, name, f"tracking.uri={uri}"))
    check_same(place, name)
    store = f"sqlite:///{place.folder}/{name}.db"
    finish(sync(place, name, store))
    check_points(store, place, name, place.run(WHOLE))
    times = step_times(place.run(name))
    longest = max(
        (wall - wall_before) - (seconds - seconds_before)
        for (step, wall_before, seconds_before), (_, wall, seconds) in pairwise(times)
        if step % place.every
    )
    assert longest <= 1, f"the loop stood still for {longest:.1f} s"
    return Injection(figures={"longest time between two steps, in s": longest})


def spoil_gradient(place: Place, i: int, step: int) -> Injection:
    """NaN in the gradient of one step; then of every step."""
    name, at = f"nan-{i}", place.every
    finish(start(place, name, steps=at))
    finish(resume(place, name, f"train.max_steps={at + 1}", f"train.validate_every={at + 1}", faults={"nan": [1, 1]}))
    assert read_json(place.run(name) / "training.json")["skipped_steps"] == 1, "the step was not counted as skipped"
    before, after = [load_weights(place.run(name) / "weights" / f"step_{at + i:08d}") for i in (0, 1)]
    changed = [key for key, tensor in before.items() if not tensor.equal(after[key])]
    assert not changed, f"a skipped step changed {changed[:3]}"
    more = ("train.max_skipped=5", f"train.max_steps={place.steps}", f"train.validate_every={place.steps}")
    outcome = finish(resume(place, name, *more, faults={"nan": [5, 10**9]}), code=2)
    assert re.search(r"5 steps in a row.*batch \d+", outcome.err, re.DOTALL), f"no batch: {last_words(outcome)}"
    return Injection()


def hang_worker(place: Place, i: int, step: int) -> Injection:
    name = f"hang-{i}"
    command = start(place, name, "cluster.max_failures=1", f"cluster.hang_minutes={HANG_SECONDS / 60}")
    workers = wait_for_step(place, command, name, step)
    place.rng.choice(workers).suspend()
    hung_at, stacks = time.monotonic(), place.run(name) / "stacks"
    while not (stacks.is_dir() and any(stacks.iterdir())) and command.process.poll() is None:
        assert time.monotonic() - hung_at < 4 * HANG_SECONDS, f"no stacks {4 * HANG_SECONDS:g} s after a worker hung"
        time.sleep(0.05)
    seconds = time.monotonic() - hung_at
    assert seconds <= 2 * HANG_SECONDS, f"found after {seconds:.0f} s, more than twice {HANG_SECONDS:g}"
    injection = _recovered(place, command, name, workers, hung_at)
    return Injection(injection.reason, injection.steps_lost, injection.recovery_seconds, {"found after s": seconds})


def terminate(place: Place, i: int, step: int) -> Injection:
    name = f"sigterm-{i}"
    command = start(place, name)
    wait_for_step(place, command, name, step)
    command.process.send_signal(signal.SIGTERM)
    sent_at = time.monotonic()
    outcome = finish(command, code=143)
    seconds = time.monotonic() - sent_at
    stopped = STOPPED.search(outcome.err)
    assert stopped, f"no checkpoint is named: {last_words(outcome)}"
    before = logged(place, name)
    started_at = time.monotonic()
    again = start(place, name)
    wait_for_recovery(again, place.run(name), [])
    recovery = time.monotonic() - started_at
    finish(again)
    assert from_step(place, name) == int(stopped[1]), f"went on from {from_step(place, name)}, not {stopped[1]}"
    lost = before - from_step(place, name)
    assert lost <= 1, f"{lost} steps were lost"
    check_same(place, name)
    return Injection(steps_lost=max(0, lost), recovery_seconds=recovery, figures={"seconds to the exit": seconds})


def drain_node(place: Place, i: int, step: int) -> Injection:
    name = f"drain-{i}"
    with cluster(3) as ray:
        words = ("cluster.max_failures=0", f"cluster.address={ray.address}")
        command = start(place, name, *words, added=ray.environment)
        wait_for_step(place, command, name, step)
        workers = ray.workers()
        node = place.rng.choice([node for node in ray.nodes if node.workers()])
        before_drain = logged(place, name)
        ray.drain(node)
        drained_at = time.monotonic()
        wait_for_recovery(command, place.run(name), workers)
        seconds = time.monotonic() - drained_at
        assert not node.workers(), "there are workers on the drained node"
        node.kill()
        outcome = finish(command)
        lost = _lost_at_drain(place, name, before_drain)
    said = outcome.out + outcome.err
    assert re.search(r"drain|going away", said), f"the terminal says nothing of the drain: {last_words(outcome)}"
    assert lost <= 1, f"{lost} steps were lost"
    check_same(place, name)
    return Injection(steps_lost=lost, recovery_seconds=seconds)


def _lost_at_drain(place: Place, name: str, before: int) -> int:
    """The steps that were taken when the node drained and are not in the checkpoint that was saved then."""
    resumed_from = from_step(place, name)
    assert resumed_from > 0, "training began again"
    return max(0, before - resumed_from)


def balloon(place: Place, i: int, step: int) -> Injection:
    """A worker takes 8 GB; Ray is told to end processes from 4 GB above what the machine uses now. The training itself
    takes 2 of them, so that there is room for the workers that start in the place of the lost ones."""
    name, memory = f"balloon-{i}", psutil.virtual_memory()
    if memory.available < 10 << 30:
        raise NotPossible("less than 10 GB of memory are free")
    limit = (memory.total - memory.available + (4 << 30)) / memory.total
    flag = place.folder / f"{name}.grown"
    fault = {"balloon": {"call": max(2, step), "bytes": 8 << 30, "flag": str(flag)}}
    environment = {"RAY_memory_usage_threshold": f"{limit:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    command = start(place, name, "cluster.max_failures=2", faults=fault, added=environment)
    workers = wait_for_step(place, command, name, 1)
    while not flag.exists() and command.process.poll() is None:
        time.sleep(0.01)
    grown_at, before = time.monotonic(), logged(place, name)
    while all(is_alive(worker) for worker in workers) and command.process.poll() is None:
        assert time.monotonic() - grown_at < 60, "nothing ended a worker that took 8 GB"
        time.sleep(0.02)
    outcome = command.wait()
    assert "Ray ended worker" in outcome.out + outcome.err, f"Ray ended no worker for memory: {last_words(outcome)}"
    if outcome.code == 2:
        assert "memory" in outcome.err, f"memory is not named: {last_words(outcome)}"
        return Injection()
    assert outcome.code == 0, f"exit code {outcome.code}: {last_words(outcome)}"
    check_same(place, name)
    return Injection(steps_lost=max(0, before - from_step(place, name)))


def jump_clock(place: Place, i: int, step: int) -> Injection:
    """An hour ahead, then an hour behind, in all processes of the command."""
    name, file = f"clock-{i}", place.folder / f"clock-{i}.shift"
    file.write_text("0")
    started_at = time.monotonic()
    command = start(place, name, faults={"clock": str(file)})
    middle = place.steps // 2
    wait_for_step(place, command, name, 1 + step * (middle - 2) // place.steps)
    file.write_text("3600")
    wait_for_step(place, command, name, middle + step * (middle - 10) // place.steps)
    file.write_text("-3600")
    finish(command)
    elapsed = time.monotonic() - started_at
    seconds = [value for _, _, value in step_times(place.run(name))]
    assert seconds == sorted(seconds) and 0 < seconds[-1] < elapsed, f"{seconds[-1]:.0f} s of training in {elapsed:.0f}"
    walls = [wall for _, wall, _ in step_times(place.run(name))]
    assert max(walls) - min(walls) > 5000, "the clock of the workers did not jump"
    check_same(place, name)
    return Injection()


def change_workers(place: Place, i: int, step: int) -> Injection:
    """2, then 1, then 3 workers; what each trained on is recorded."""
    name = f"world-{i}"
    folder = place.samples / name
    folder.mkdir(parents=True)
    record = {"record": str(folder)}
    first = 2 + step * (place.steps // 2 - 5) // place.steps
    command = start(place, name, faults=record)
    wait_for_step(place, command, name, first)
    command.process.send_signal(signal.SIGTERM)
    finish(command, code=143)
    stopped = max(list_steps(place.run(name) / "checkpoints"))
    command = resume(place, name, "cluster.num_workers=1", faults=record)
    wait_for_step(place, command, name, min(place.steps - 10, first + place.steps // 4))
    command.process.send_signal(signal.SIGTERM)
    finish(command, code=143)
    finish(resume(place, name, "cluster.num_workers=3", "cluster.cpus_per_worker=0.5", faults=record))
    assert read_json(place.run(name) / "training.json")["world_size"] == 3
    found, expected = samples(folder), samples(place.samples / WHOLE)
    assert expected and found == expected, (
        f"{sum((found - expected).values())} micro-batches too many, {sum((expected - found).values())} too few"
    )
    steps, whole = losses(place.run(name)), losses(place.run(WHOLE))
    assert len(steps) == place.steps
    # Nothing differs with two workers; the first step of one worker begins with the same weights.
    assert all(steps[i] == whole[i] for i in range(1, stopped + 1)), "a loss before the change differs"
    apart = abs(steps[stopped + 1] / whole[stopped + 1] - 1)
    assert apart <= FIRST_TOLERANCE, f"the first loss after the change differs by {apart:.2g}"
    return Injection(figures={"largest relative difference of a loss": check_close(place, name, TOLERANCE)})
