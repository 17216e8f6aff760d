"""One long training under a rain of kills: workers, nodes, the MLflow server, the command itself."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from command import Command

from chaos.report import CaseResult, Injection
from chaos.servers import Cluster, MlflowServer, cluster, mlflow_server
from chaos.training import (
    Place,
    check_points,
    check_same,
    end_commands,
    finish,
    last_words,
    start,
    train,
    wait_for_gone,
    wait_for_recovery,
)

BETWEEN = (20.0, 60.0)  # seconds from a kill to the next
SHARE = 0.6  # of the time in which the disturbed training is expected to take steps
WHOLE = "soak-whole"
NUMBERS = {"worker": 1, "node": 4, "command": 5, "MLflow server": 13}
EVERYWHERE = 0  # the number of the run as a whole


@dataclass
class Soak:
    """What is going on."""

    place: Place
    ray: Cluster
    server: MlflowServer
    steps: int
    command: Command

    def start(self) -> Command:
        words = ("cluster.max_failures=1000", f"cluster.address={self.ray.address}", f"tracking.uri={self.server.uri}")
        return start(self.place, "soak", *words, added=self.ray.environment, steps=self.steps)


def soak(place: Place, minutes: float, tell: Callable[[str], None]) -> list[CaseResult]:
    """Results by what was killed, and of the run at its end."""
    steps, place.every = sizes(minutes, place.step_seconds)
    tell(f"{steps} undisturbed steps first, about {steps * place.step_seconds / 60:.1f} minutes")
    train(place, WHOLE, steps=steps)
    found: dict[str, list[Injection]] = {name: [] for name in NUMBERS}
    with mlflow_server(place.folder / "soak-mlflow") as server, cluster(2) as ray:
        state = Soak(place, ray, server, steps, None)  # pyright: ignore[reportArgumentType]
        state.command = state.start()
        at_end = Injection()
        try:
            wait_for_recovery(state.command, place.run("soak"), [])
            _rain(state, minutes, found, tell)
            tell("no more kills; the training goes on to its end")
            finish(state.command)
            check_same(place, "soak", WHOLE, steps)
            check_points(server.store, place, "soak", place.run(WHOLE))
        except Exception as error:
            at_end = Injection(f"{'' if isinstance(error, AssertionError) else type(error).__name__} {error}")
        finally:
            end_commands(place)
    results = [
        CaseResult(NUMBERS[name], f"soak: SIGKILL to a {name}", len(injections), injections)
        for name, injections in found.items()
        if injections
    ]
    kills = sum(len(injections) for injections in found.values())
    whole = f"soak: {steps} steps and {kills} kills in {minutes:g} minutes, weights and MLflow's points compared"
    return [CaseResult(EVERYWHERE, whole, 1, [at_end]), *results]


def sizes(minutes: float, step_seconds: float) -> tuple[int, int]:
    """Steps of a training that lasts for so many minutes of kills, and steps between its checkpoints: less than half of
    the shortest time between two kills, so that it gets on."""
    every = max(1, int(BETWEEN[0] / 4 / step_seconds))
    return max(4 * every, int(minutes * 60 * SHARE / step_seconds)), every


def _rain(state: Soak, minutes: float, found: dict[str, list[Injection]], tell: Callable[[str], None]) -> None:
    """Kills until the time is up or the training has ended."""
    place, started_at = state.place, time.monotonic()
    ends_at, next_at = started_at + minutes * 60, started_at + place.rng.uniform(*BETWEEN)
    while (now := time.monotonic()) < ends_at:
        if (code := state.command.process.poll()) is not None:
            if code == 0:
                return
            raise AssertionError(f"the command ended by itself with {code}: {last_words(state.command.wait())}")
        if now < next_at:
            time.sleep(0.1)
            continue
        name = place.rng.choice(list(NUMBERS))
        next_at = now + place.rng.uniform(*BETWEEN)
        injection = _kill(state, name)
        found[name].append(injection)
        left = max(0.0, ends_at - time.monotonic())
        back = f", back after {injection.recovery_seconds:.0f} s" if injection.recovery_seconds else ""
        tell(f"SIGKILL to a {name}{back}; {left / 60:.1f} minutes left")


def _kill(state: Soak, name: str) -> Injection:
    """Kills one, starts it again where that is not the command's own work, and waits until steps are taken again."""
    place, command, ray = state.place, state.command, state.ray
    folder, workers = place.run("soak"), state.ray.workers()
    killed_at = time.monotonic()
    match name:
        case "MLflow server":
            state.server.kill()
            time.sleep(place.rng.uniform(1, 15))
            state.server.start()
            return Injection(figures={"seconds down": time.monotonic() - killed_at})
        case "worker":
            place.rng.choice(workers).kill()
        case "node":
            node = place.rng.choice([node for node in ray.nodes if node.workers()] or ray.nodes)
            node.kill()
            ray.nodes.remove(node)
            ray.add()
            left = node.left_over()
            assert not left, f"left of the node: {left}"
        case _:
            command.process.kill()
            command.process.wait()
            state.command = state.start()
            wait_for_gone(workers, 60)
    wait_for_recovery(state.command, folder, workers)
    return Injection(recovery_seconds=time.monotonic() - killed_at)
