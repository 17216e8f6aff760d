"""Measures training steps of ours on this machine: one worker alone, and several beside each other, in turns."""

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transloom.pipeline.plan.hardware import Hardware
from transloom.pipeline.plan.memory import Footing
from transloom.pipeline.plan.probe import Probe, Reduce, Save, Steps, Taken, make_member
from transloom.pipeline.plan.speed import UPDATE_BYTES
from transloom.pipeline.processes import Contender, Meeting
from transloom.pipeline.progress import Progress
from transloom.pipeline.train.optimizer import Precision

WARM_UP_SECONDS, TURN_SECONDS, TURNS = 8.0, 4.0, 4
LEAST_WARM_UP, LEAST_STEPS = 3, 2  # steps, where they take longer than that
ALONE, TOGETHER = "alone", "together"


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        workers: who worked together.
        flops_alone, flops_together: FLOP/s of one worker in forward and backward, alone and beside the others.
        update_seconds: of Adam on the whole model.
        link, latency: bytes/s and seconds of a ring's step between the workers; None of one alone.
        training_bytes: the most that a worker alone held beside its libraries, after `micro_batches`.
        checkpoint_seconds: to collect and write the complete state.
    """

    workers: int
    flops_alone: float
    flops_together: float
    update_seconds: float
    link: float | None
    latency: float | None
    training_bytes: float
    micro_batches: int
    checkpoint_seconds: float


def calibrate(
    probe: Probe, workers: int, parameters: int, environment: Mapping[str, str], progress: Progress
) -> Calibration:
    """Measures one worker alone and `workers` of them together.

    Args:
        probe: its batch and members are of one worker.
        environment: of the members' processes, beside this one's: threads and allocator.
    Raises:
        UserError: a member died, most likely for want of memory.
    """
    Path(probe.folder).mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="calibration-", dir=probe.folder))
    sizes = {ALONE: 1, **({TOGETHER: workers} if workers > 1 else {})}
    try:
        with Meeting() as meeting:
            contenders: dict[str, Contender] = {}
            imported: dict[str, Sequence[int]] = {}
            for name, count in sizes.items():
                progress("starting", 0, 0)
                batch = dataclasses.replace(probe.batch, tokens=probe.batch.tokens * count)
                one = dataclasses.replace(probe, batch=batch, members=count, folder=str(place))
                lost = meeting.start_processes(name, count, {**environment, "GLOO_SOCKET_IFNAME": "lo"})
                contenders[name] = meeting.meet(name, count, lost)
                contenders[name].send(*(partial(make_member, one, number) for number in range(count)))
                imported[name] = contenders[name].receive()
            taken, steps = _take_turns(contenders, progress)
            latency, link = _ring(contenders[TOGETHER], workers, parameters) if workers > 1 else (None, None)
            progress("writing a checkpoint", 0, 0)
            checkpoint = contenders[ALONE].ask(Save(str(place / "checkpoints")))[0]
            peak = _ask_steps(contenders[ALONE], 0, 1).peak_bytes  # a run's workers write checkpoints too
    finally:
        shutil.rmtree(place, ignore_errors=True)
    alone = taken[ALONE]
    update = alone.update_seconds
    flops_alone = alone.flops / (alone.seconds - update)
    flops_together = flops_alone
    if link is not None and latency is not None:
        # Of all members together; what they wait for each other is in it
        ring = 2 * (workers - 1) / workers * 4 * parameters / link + 2 * (workers - 1) * latency
        flops_together = taken[TOGETHER].flops / workers / (taken[TOGETHER].seconds - update - ring)
    return Calibration(
        workers=workers,
        flops_alone=flops_alone,
        flops_together=flops_together,
        update_seconds=update,
        link=link,
        latency=latency,
        training_bytes=float(peak - imported[ALONE][0]),
        micro_batches=steps * probe.batch.micro_batches,
        checkpoint_seconds=checkpoint,
    )


def _take_turns(contenders: Mapping[str, Contender], progress: Progress) -> tuple[dict[str, Taken], int]:
    """Each contender's mean step, of some that the warm-up has taken before, and how many the one alone took then."""
    pace: dict[str, int] = {}
    warm_up: dict[str, int] = {}
    for name, contender in contenders.items():
        progress(f"warming up, one worker {name}" if name == ALONE else f"warming up, workers {name}", 0, 0)
        seconds, count = 0.0, 0
        while seconds < WARM_UP_SECONDS or count < LEAST_WARM_UP:
            last = _ask_steps(contender, count, 1)
            seconds, count = seconds + last.seconds, count + 1
        warm_up[name] = count
        pace[name] = min(count, max(LEAST_STEPS, round(TURN_SECONDS / last.seconds)))
    turns: dict[str, list[Taken]] = {name: [] for name in contenders}
    for number in range(TURNS):
        for name, contender in contenders.items():
            progress("measuring", number, TURNS)
            turns[name].append(_ask_steps(contender, 0, pace[name]))
    return {name: _mean(found, TURNS * pace[name]) for name, found in turns.items()}, warm_up[ALONE]


def _ask_steps(contender: Contender, first: int, count: int) -> Taken:
    found: list[Taken] = contender.ask(Steps(first, count))
    return max(found, key=lambda one: one.seconds)


def _mean(turns: Sequence[Taken], steps: int) -> Taken:
    return Taken(
        seconds=sum(one.seconds for one in turns) / steps,
        update_seconds=sum(one.update_seconds for one in turns) / steps,
        flops=sum(one.flops for one in turns) / steps,
        peak_bytes=max(one.peak_bytes for one in turns),
    )


def _ring(together: Contender, workers: int, parameters: int) -> tuple[float, float]:
    """Latency and bandwidth by which `2 (W - 1) / W x bytes / bandwidth + 2 (W - 1) x latency` is what was measured."""
    small, large = (max(together.ask(Reduce(numbers))) for numbers in (1, parameters))
    passes = 2 * (workers - 1)
    return small / passes, passes / workers * 4 * parameters / max(large - small, 1e-9)


def calibrated(
    hardware: Hardware,
    footing: Footing,
    measured: Calibration,
    precision: Precision,
    parameters: int,
    predicted_bytes: float,
) -> tuple[Hardware, Footing]:
    """This machine as it was measured, in place of what was assumed of it.

    Args:
        footing: its libraries are those of a worker of Ray, which were not there.
        predicted_bytes: what the worker alone was to hold beside its libraries.
    """
    peak = {kind: flops * hardware.utilisation for kind, flops in hardware.peak.items()}
    return (
        dataclasses.replace(
            hardware,
            peak={**peak, precision: measured.flops_alone},
            utilisation=1.0,
            crowding=(1 - measured.flops_together / measured.flops_alone) / max(1, measured.workers - 1),
            memory_bandwidth=UPDATE_BYTES * parameters / measured.update_seconds,
            link=measured.link or hardware.link,
            link_latency=measured.latency or hardware.link_latency,
            origin="measured",
        ),
        dataclasses.replace(footing, libraries=footing.libraries + measured.training_bytes - predicted_bytes),
    )
