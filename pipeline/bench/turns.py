"""Contenders of training take turns on the same steps; round after round, so that a machine whose speed drifts treats
all alike."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from transloom.pipeline.bench.config import WARM_UP_STEPS
from transloom.pipeline.bench.kept import Kept
from transloom.pipeline.bench.task import Burst, Skip
from transloom.pipeline.processes import Contender, busy_seconds
from transloom.pipeline.progress import Progress

MATMUL_SECONDS = 1.0


@dataclass(frozen=True)
class Turn:
    """What a contender, all its members together, did in one turn.

    Attributes:
        steps: optimizer steps taken so far, this turn's included. A bench that goes on counts anew.
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


def rounds_of(kept: Kept, names: Sequence[str]) -> Rounds:
    """What was measured so far of these contenders."""
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for line in kept.of("training"):
        if line["contender"] in turns:
            turns[line["contender"]].append(Turn(**line["turn"]))
    return Rounds(turns, [speed for line in kept.of("matmul") for speed in line["flops_per_second"]])


def take_turns(
    contenders: Mapping[str, Contender], matmul: Contender, rounds: int, steps: int, kept: Kept, progress: Progress
) -> dict[str, int]:
    """Warms all up, then has each take `steps` steps a round. Every other round runs in the opposite order, so that
    nobody always comes after the same one. Turns that are kept are not taken again; the others are added to them. All
    turns of a round are on the pairs of the same steps, those of an earlier command too.

    Returns:
        the steps that each contender has taken; 0 for one that had all its turns before.
    """
    before = rounds_of(kept, list(contenders))
    done = {name: len(turns) for name, turns in before.turns.items()}
    total, taken = rounds * len(contenders), dict.fromkeys(contenders, 0)
    for name in [name for name in contenders if done[name] < rounds]:
        progress(f"warming up {name}", 0, 0)
        contenders[name].ask(WARM_UP_STEPS)
        contenders[name].ask(Skip(done[name] * steps))
        taken[name] = WARM_UP_STEPS
    for number in range(rounds):
        if len(before.matmul) <= number and min(done.values()) <= number:
            kept.add("matmul", flops_per_second=matmul.ask(MATMUL_SECONDS))
        names = list(contenders) if number % 2 == 0 else list(contenders)[::-1]
        for name in names:
            if done[name] > number:
                continue
            progress(f"round {number + 1} of {rounds}: {name}", sum(done.values()), total)
            taken[name] += steps
            turn = _turn(contenders[name], steps, taken[name])
            kept.add("training", contender=name, round=number + 1, turn=asdict(turn))
            done[name] += 1
    return taken


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
