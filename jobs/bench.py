"""Bench: what the orchestration costs, and how training and decoding compare with what is usually used.

All on this machine and in one run: contenders are processes that stay alive and take turns.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import Enum
from typing import Any

from jobs.bench_summary import machine, print_bench
from jobs.cli import configuration
from jobs.config import Config, to_dict
from jobs.console import StatusLine, clock
from jobs.workspace import output_dir
from pipeline.bench.config import BenchConfig, Part
from pipeline.bench.turns import Progress
from pipeline.errors import UserError
from pipeline.files import write_json

USAGE = "usage: transloom bench [run or model folder] [part=train|decode] [rounds=5] [steps=10] [key=value …]"
OWN = [field.name for field in dataclasses.fields(BenchConfig)]
RESULT_FILE = "bench.json"


def main(argv: list[str]) -> int:
    bench, folders, settings = _sort(argv)
    config = configuration("bench", settings)
    if len(folders) > 1:
        raise UserError(USAGE)
    if config.cluster.address or config.resume:
        key = "cluster.address" if config.cluster.address else "resume"
        raise UserError(f"{key}: the bench measures this machine, with contenders of its own; leave it out")
    folder = output_dir(config) / "bench" / (config.name or f"{config.corpus.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    result = {
        "machine": machine(config),
        "bench": {key: getattr(value, "value", value) for key, value in dataclasses.asdict(bench).items()},
        "settings": to_dict(config),
        **_measure(config, bench, folder),
    }
    write_json(folder / RESULT_FILE, result)
    print_bench(result, folder)
    return 0


def _measure(config: Config, bench: BenchConfig, folder: Any) -> dict[str, Any]:
    from jobs.bench_contenders import measure_training, task_of
    from jobs.cluster import ray_session
    from jobs.prepare import found_prepared, prepare_stage

    prepared = found_prepared(config)
    result: dict[str, Any] = {}
    with ExitStack() as stack:
        if bench.trains or prepared is None:
            stack.enter_context(ray_session(config.cluster))
        prepared = prepared or prepare_stage(config)
        task = task_of(config, prepared)
        folder.mkdir(parents=True, exist_ok=True)
        progress = stack.enter_context(_progress())
        if bench.trains:
            result["training"] = measure_training(task, config.cluster, bench, folder, progress)
    return result


def _sort(argv: Sequence[str]) -> tuple[BenchConfig, list[str], list[str]]:
    """The bench's own settings, folders, and the settings that are everyone's."""
    own: dict[str, Any] = {}
    folders, settings = [], []
    for i, word in enumerate(argv):
        key, equals, value = word.partition("=")
        if equals and key in OWN:
            own[key] = _value(key, value)
        elif equals or word.startswith("-") or argv[i - 1] == "--cfg":
            settings.append(word)
        else:
            folders.append(word)
    if not any(word.startswith("experiment=") for word in settings):
        settings.insert(0, "experiment=bench")
    try:
        return BenchConfig(**own), folders, settings
    except ValueError as error:
        raise UserError(str(error)) from None


def _value(key: str, value: str) -> int | Enum:
    if key == "part":
        if value not in [one.value for one in Part]:
            raise UserError(f"part={value}: there is {', '.join(one.value for one in Part)}")
        return Part(value)
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{key}={value}: must be a whole number") from None


@contextmanager
def _progress() -> Iterator[Progress]:
    """Shows what is going on and, once that is known, for how long."""
    status = StatusLine()
    started_at: dict[str, float] = {}

    def show(what: str, done: int, total: int) -> None:
        kind = what.partition(":")[0].split(" ")[0]
        begun_at = started_at.setdefault(kind, time.monotonic())
        left = ""
        if done and total:
            left = f"   ETA {clock((time.monotonic() - begun_at) / done * (total - done))}"
        status.show(f"  {what}   {done} of {total}{left}", now=True)

    try:
        yield show
    finally:
        status.clear()
