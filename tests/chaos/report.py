"""What came of the injections: random moments, verdicts, the table, the exit code. Pure functions."""

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Injection:
    """What came of one fault.

    Attributes:
        reason: why it was not survived; empty where it was.
        steps_lost: steps that had been logged and had to be trained again.
        recovery_seconds: from the fault to the first step after it.
        figures: other measurements, by name.
    """

    reason: str = ""
    steps_lost: int | None = None
    recovery_seconds: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def survived(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class CaseResult:
    """All injections of a case.

    Attributes:
        wanted: how many there should have been.
        not_run: why there were none, where the machine can't inject the fault.
    """

    number: int
    fault: str
    wanted: int
    injections: Sequence[Injection]
    not_run: str = ""

    @property
    def survived(self) -> bool:
        """A case with fewer injections than wanted has not survived."""
        return len(self.injections) >= max(1, self.wanted) and all(one.survived for one in self.injections)


def random_steps(rng: random.Random, times: int, first: int, last: int) -> list[int]:
    """`times` steps in [first, last] in random order: a random one of each of equally long stretches, so that few
    injections reach all parts of a training."""
    if times < 1 or last < first:
        raise ValueError(f"no {times} steps are in [{first}, {last}]")
    length = (last - first + 1) / times
    steps = [min(last, int(first + length * (i + rng.random()))) for i in range(times)]
    rng.shuffle(steps)
    return steps


def exit_code(results: Sequence[CaseResult]) -> int:
    """1 where a case did not survive, could not be injected, or where there was none."""
    return int(not results or not all(one.survived for one in results))


def markdown(results: Sequence[CaseResult], seed: int, machine: str) -> str:
    """The table, and a line for each injection that was not survived."""
    lines = [
        f"Seed {seed}; {machine}.",
        "",
        "| Case | Fault | Injected | Survived | Steps lost, median (max) | Recovery in s, median (max) | Measured |",
        "|---:|---|---:|---:|---:|---:|---|",
    ]
    for one in sorted(results, key=lambda one: one.number):
        survived = f"{sum(injection.survived for injection in one.injections)}"
        lost = [float(i.steps_lost) for i in one.injections if i.steps_lost is not None]
        seconds = [i.recovery_seconds for i in one.injections if i.recovery_seconds is not None]
        cells = (
            str(one.number),
            one.fault,
            f"{len(one.injections)} of {one.wanted}" if len(one.injections) < one.wanted else str(one.wanted),
            survived,
            _median_and_max(lost, 0),
            _median_and_max(seconds, 1),
            _figures(one.injections),
        )
        lines.append(f"| {' | '.join(cells)} |")
    failures = [
        f"- case {one.number}, injection {i}: {' '.join(injection.reason.split())[:600]}"
        for one in results
        for i, injection in enumerate(one.injections, 1)
        if not injection.survived
    ]
    failures += [f"- case {one.number}: not run: {one.not_run}" for one in results if one.not_run]
    if failures:
        lines += ["", "Not survived:", "", *failures]
    return "\n".join(lines) + "\n"


def write_results(folder: Path, results: Sequence[CaseResult], seed: int, machine: str) -> None:
    """Writes chaos.json and chaos.md anew."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = [dataclasses.asdict(one) | {"survived": one.survived} for one in results]
    record: dict[str, Any] = {"seed": seed, "machine": machine, "cases": cases}
    (folder / "chaos.json").write_text(json.dumps(record, indent=2) + "\n")
    (folder / "chaos.md").write_text(markdown(results, seed, machine))


def _median_and_max(values: Sequence[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({max(values):.{digits}f})" if values else "–"


def _figures(injections: Sequence[Injection]) -> str:
    names = list(dict.fromkeys(name for one in injections for name in one.figures))
    parts = []
    for name in names:
        values = [one.figures[name] for one in injections if name in one.figures]
        parts.append(f"{name} {median(values):.3g}" + (f" (max {max(values):.3g})" if len(values) > 1 else ""))
    return "; ".join(parts) or "–"


def doubled_or_missing(expected: Sequence[tuple[int, float]], found: Sequence[tuple[int, float]]) -> str:
    """How the points of a metric differ from those expected, in any order; empty where they do not."""
    steps = [step for step, _ in found]
    doubled = sorted({step for step in steps if steps.count(step) > 1}) if len(set(steps)) < len(steps) else []
    missing = sorted({step for step, _ in expected} - set(steps))
    added = sorted(set(steps) - {step for step, _ in expected})
    changed = sorted({step for step, _ in set(found) ^ set(expected)} - {*doubled, *missing, *added})
    kinds = {"doubled": doubled, "missing": missing, "unexpected": added, "of another value": changed}
    return "; ".join(f"{name} at steps {steps[:5]}" for name, steps in kinds.items() if steps)


def stalls(points: Sequence[tuple[int, float, float]], checkpoint_every: int) -> list[float]:
    """Seconds for which training stood still at each checkpoint.

    Args:
        points: (step, wall-clock seconds, seconds of training so far) as logged after every step, in order. A
            checkpoint is saved after the point of its step, and so between two points.
    """
    between = {
        step: (wall - wall_before) - (seconds - seconds_before)
        for (_, wall_before, seconds_before), (step, wall, seconds) in pairwise(points)
    }
    usual = median(value for step, value in between.items() if (step - 1) % checkpoint_every)
    return [value - usual for step, value in between.items() if (step - 1) % checkpoint_every == 0]
