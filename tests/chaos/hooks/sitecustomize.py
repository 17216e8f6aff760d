"""Python imports this by itself in every process of a command that has this folder in PYTHONPATH: faults that come
from inside of a process. TRANSLOOM_CHAOS holds them as JSON, {"<fault>": <its setting>}; see the functions."""

import contextlib
import importlib.abc
import importlib.machinery
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

FAULTS = json.loads(os.environ.get("TRANSLOOM_CHAOS", "{}"))


def once(flag):
    """Whether this process is the first of all to ask."""
    try:
        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def shift_clock(file):
    """The wall clock of every process is off by the seconds that `file` holds, read ten times a second."""
    real, real_ns, monotonic = time.time, time.time_ns, time.monotonic
    state = {"looked_at": -1.0, "shift": 0.0}

    def shift():
        if monotonic() - state["looked_at"] > 0.1:
            state["looked_at"] = monotonic()
            with contextlib.suppress(OSError, ValueError):  # being written
                state["shift"] = float(Path(file).read_text() or 0)
        return state["shift"]

    time.time = lambda: real() + shift()
    time.time_ns = lambda: real_ns() + int(shift() * 1e9)


def spoil_gradients(loop, steps):
    """NaN in the gradients of rank 0 in the first to the last of these steps, counted from 1 in each process."""
    import dataclasses

    from transloom.pipeline.ranks import rank

    usual, calls = loop.add_gradients, itertools.count(1)

    def add_gradients(engine, step, *rest):
        if steps[0] <= next(calls) <= steps[1] and rank() == 0:
            step = dataclasses.replace(step, loss_count=float("nan"))
        return usual(engine, step, *rest)

    loop.add_gradients = add_gradients


def record_samples(loop, folder):
    """Appends the step's place in the plan and the hash of each real micro-batch to a file of this process."""
    import hashlib

    usual = loop.add_gradients
    file = open(Path(folder) / f"{os.getpid()}.jsonl", "ab", buffering=0)  # noqa: SIM115

    def add_gradients(engine, step, *rest):
        for batch, share in zip(step.batches, step.shares, strict=True):
            if share:
                data = batch.source.cpu().numpy().tobytes() + batch.labels.cpu().numpy().tobytes()
                place = [step.epoch, step.index, hashlib.sha256(data).hexdigest()]
                file.write(json.dumps(place).encode() + b"\n")
        return usual(engine, step, *rest)

    loop.add_gradients = add_gradients


def balloon(loop, setting):
    """The first worker to come to the step takes so many bytes, a little at a time, and keeps them."""
    usual, calls = loop.add_gradients, itertools.count(1)

    def add_gradients(engine, step, *rest):
        if next(calls) == setting["call"] and once(setting["flag"]):
            held = []
            for _ in range(setting["bytes"] >> 26):
                held.append(b"\1" * (1 << 26))
                time.sleep(0.02)
            time.sleep(5)
        return usual(engine, step, *rest)

    loop.add_gradients = add_gradients


def kill_before_pointer(checkpoint, setting):
    """SIGKILL to rank 0 when the checkpoint of a step has its name and the pointer does not name it yet; once."""
    usual = checkpoint.atomic_write

    def atomic_write(path, *arguments, **more):
        is_there = Path(path).with_name(f"step_{setting['step']:08d}").is_dir()
        if (
            Path(path).parent.name == "checkpoints"
            and Path(path).name == "latest"
            and is_there
            and once(setting["flag"])
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(path, *arguments, **more)

    checkpoint.atomic_write = atomic_write


PATCHES = {
    "transloom.pipeline.train.loop": {"nan": spoil_gradients, "record": record_samples, "balloon": balloon},
    "transloom.pipeline.train.checkpoint": {"kill_before_pointer": kill_before_pointer},
}


class Patching(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Patches the modules of PATCHES when they are imported."""

    def __init__(self):
        self.loaders = {}

    def find_spec(self, name, path=None, target=None):
        if name not in PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        self.loaders[name], spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self.loaders[spec.name].create_module(spec)

    def exec_module(self, module):
        self.loaders[module.__name__].exec_module(module)
        for fault, patch in PATCHES[module.__name__].items():
            if fault in FAULTS:
                patch(module, FAULTS[fault])


if "clock" in FAULTS:
    shift_clock(FAULTS["clock"])
if FAULTS:
    sys.meta_path.insert(0, Patching())
