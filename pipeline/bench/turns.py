"""Contenders of training take turns on the same steps; round after round, so that a machine whose speed drifts treats
all alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.bench.config import WARM_UP_STEPS
from pipeline.bench.task import Burst
from pipeline.processes import Contender, busy_seconds
from pipeline.progress import Progress

MATMUL_SECONDS = 1.0


@dataclass(frozen=True)
class Turn:
    """What a contender, all its members together, did in one turn.

    Attributes:
        steps: optimizer steps taken so far, this turn's included.
        loss: nats per target token (smoothed), mean over the turn.
        cpu_seconds: of its own processes. other_cpu_seconds: of all others on the machine in this time.
        stolen_seconds: in which a virtual machine's host had given its processors to others.
        peak_bytes: the sum over its members. gpu_peak_bytes: the largest of them.
    """

    steps: int
    seconds: float
    source_tokens: int
    target_tokens: int
    loss: float
    cpu_seconds: float
    other_cpu_seconds: float
    stolen_seconds: float
    peak_bytes: int
    gpu_peak_bytes: int


@dataclass(frozen=True)
class Rounds:
    """Everything that was measured: the turns by contender, and the matrix product's FLOP/s in each round."""

    turns: dict[str, list[Turn]]
    matmul: list[float]


def take_turns(
    contenders: Mapping[str, Contender], matmul: Contender, rounds: int, steps: int, progress: Progress
) -> Rounds:
    """Warms all up, then has each take `steps` steps a round. Every other round runs in the opposite order, so that
    nobody always comes after the same one."""
    result = Rounds({name: [] for name in contenders}, [])
    total, done = rounds * len(contenders), 0
    for name, contender in contenders.items():
        progress(f"warming up {name}", done, total)
        contender.ask(WARM_UP_STEPS)
    for number in range(rounds):
        names = list(contenders) if number % 2 == 0 else list(contenders)[::-1]
        for name in names:
            progress(f"round {number + 1} of {rounds}: {name}", done, total)
            result.turns[name].append(_turn(contenders[name], steps, WARM_UP_STEPS + (number + 1) * steps))
            done += 1
        result.matmul.extend(matmul.ask(MATMUL_SECONDS))
    return result


def _turn(contender: Contender, steps: int, steps_so_far: int) -> Turn:
    busy_before, stolen_before = busy_seconds()
    bursts: Sequence[Burst] = contender.ask(steps)
    busy, stolen = busy_seconds()
    own = sum(one.cpu_seconds for one in bursts)
    return Turn(
        steps=steps_so_far,
        seconds=max(one.seconds for one in bursts),
        source_tokens=bursts[0].source_tokens,
        target_tokens=bursts[0].target_tokens,
        loss=sum(one.loss for one in bursts) / bursts[0].target_tokens,
        cpu_seconds=own,
        other_cpu_seconds=max(0.0, busy - busy_before - own),
        stolen_seconds=stolen - stolen_before,
        peak_bytes=sum(one.peak_bytes for one in bursts),
        gpu_peak_bytes=max(one.gpu_peak_bytes for one in bursts),
    )
