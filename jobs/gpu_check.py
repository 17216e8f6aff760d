"""`make gpu-check`: whether training and translating work on this machine's GPU as they should, and how fast.

    python -m transloom.jobs.gpu_check [device=cpu] [folder=outputs/gpu-check]

No job of `transloom`, since it reads no configuration: it needs neither Hydra nor Ray nor MLflow, only torch and what
its parts name. With device=cpu the same parts run on the CPU with tiny sizes, to try the check itself.

    python -m transloom.jobs.gpu_check part=<name> answer=<file> work=<folder> device=<device>

is how it runs a part in a process of its own.
"""

import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transloom.jobs.terminal.console import SafeConsole
from transloom.jobs.terminal.printable import printable
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import write_json
from transloom.pipeline.gpu_check.outcome import Outcome, Skipped
from transloom.pipeline.gpu_check.runner import FAILED, SKIPPED, Part, Record, as_report, run_parts, work
from transloom.pipeline.gpu_check.table import WIDTH, compare_systems, write_table

REPORT, TABLE = "gpu-check.json", "gpu-check.txt"
GPU, DEMO = "gpu", "demo"
SYSTEMS = {"torch": "torch.nn.Transformer", "marian": "Marian"}
PHRASEBOOK = ("sacrebleu", "scipy", "babel", "num2words")  # with its scores
MARIAN = ("transformers", "google.protobuf")  # with the conversion of weights


def _training(name: str, system: str = "ours") -> Part:
    needs = MARIAN if system == "marian" else ()
    label = SYSTEMS.get(system, "ours")
    part = name if system == "ours" else f"{name}-{system}"
    return Part(part, f"training {name}: {label}", needs, 25, 90, GPU)


PARTS = [  # the most important first: what there is no time for comes last
    Part(GPU, "the GPU, as doctor sees it", seconds=5),
    _training("base"),
    Part("attention", "variable-length attention", seconds=15, after=GPU),
    _training("big"),
    *[Part(f"zero{stage}", f"ZeRO {stage}", ("deepspeed",), 25, 90, GPU) for stage in (1, 2, 3)],
    Part("fp16", "loss scale of fp16", seconds=15, after=GPU),
    Part(DEMO, "the demo", PHRASEBOOK, 60, 150, GPU),
    Part("decoding", "decoding", MARIAN, 40, 100, DEMO),
    *[_training(name, system) for name in ("base", "big") for system in SYSTEMS],
]


def main(argv: Sequence[str]) -> int:
    """0: every part passed or was skipped. 1: one failed."""
    words = dict(word.split("=", 1) for word in argv if "=" in word)
    if unknown := [
        word for word in argv if word.split("=", 1)[0] not in ("device", "folder", "part", "answer", "work")
    ]:
        raise UserError(f"{unknown[0]}: no such word; there are device=cpu and folder=<folder>")
    device = words.get("device", "cuda")
    if device not in ("cpu", "cuda"):
        raise UserError(f"device: cuda or cpu, not {device!r}")
    if "part" in words:
        part = next(one for one in PARTS if one.name == words["part"])
        work(part, partial(function_of(part), device, Path(words["work"])), Path(words["answer"]))
        return 0
    return check(device, Path(words.get("folder", "outputs/gpu-check")))


def check(device: str, folder: Path) -> int:
    """Runs all parts, and writes the report and the table into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    console = SafeConsole(width=WIDTH, markup=False, highlight=False, emoji=False)
    context: dict[str, Any] = {"device": device, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "machine": {}}

    def tell(records: list[Record], newest: Record) -> None:
        if newest.name == GPU:
            context["machine"] = newest.figures
        write_json(folder / REPORT, as_report(records, {**context, "ratios": _ratios(records)}))
        if newest.status != SKIPPED:
            console.print(f"{newest.what}: {newest.status} in {newest.seconds:.0f} s", soft_wrap=True)

    with tempfile.TemporaryDirectory(prefix="transloom-gpu-check-") as scratch:

        def command(part: Part, answer: Path) -> list[str]:
            words = [f"part={part.name}", f"answer={answer}", f"work={scratch}", f"device={device}"]
            return [sys.executable, "-m", "transloom.jobs.gpu_check", *words]

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part under way is ended, too
        records = run_parts(PARTS, command, folder, tell)
    write_table(console, records, _ratios(records))
    with open(folder / TABLE, "w", encoding="utf-8") as file:
        write_table(SafeConsole(width=WIDTH, file=file, markup=False), records, _ratios(records))
    num_failed = sum(record.status == FAILED for record in records)
    console.print(f"\n{f'{num_failed} failed' if num_failed else 'Nothing failed'}. {folder / REPORT}", soft_wrap=True)
    return 1 if num_failed else 0


def _ratios(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [
        ratio
        for name in ("base", "big")
        for ratio in compare_systems(records, name, {f"{name}-{system}": label for system, label in SYSTEMS.items()})
    ]


def function_of(part: Part) -> Callable[[str, Path], Outcome]:
    """What a part does, given the device's name and a folder that all parts share."""
    name, _, system = part.name.partition("-")
    if name == GPU:
        return examine_gpu
    if name in ("base", "big"):
        return partial(_measure_training, name, system or "ours")
    if name.startswith("zero"):
        return partial(_check_zero, int(name.removeprefix("zero")))
    return {"attention": _check_attention, "fp16": _check_loss_scale, DEMO: _run_demo, "decoding": _decode}[name]


def examine_gpu(device: str, folder: Path) -> Outcome:
    """Doctor's line on GPUs."""
    from transloom.jobs.ray_cluster.machine import gpus
    from transloom.pipeline.gpu_check.device import machine

    finding = gpus()
    if finding.advice:
        raise UserError(f"{finding.found}: {finding.advice}")
    if finding.found == "none" and device != "cpu":
        raise Skipped("no GPU")
    about = machine()
    memory = f", {about['memory_bytes'] / 2**30:.0f} GiB" if "gpu" in about else ""
    return Outcome(f"{finding.found}{memory}; torch {about['torch']}, CUDA {about['cuda']}", about)


# Slow libraries are imported in the part's own process alone.


def _measure_training(name: str, system: str, device: str, folder: Path) -> Outcome:
    from transloom.pipeline.bench.task import Kind
    from transloom.pipeline.gpu_check.device import use_device
    from transloom.pipeline.gpu_check.settings import training_size
    from transloom.pipeline.gpu_check.training import measure_training

    return measure_training(Kind(system), training_size(name, device), use_device(device), folder)


def _check_attention(device: str, folder: Path) -> Outcome:
    from transloom.pipeline.gpu_check.attention import check_attention
    from transloom.pipeline.gpu_check.device import use_device
    from transloom.pipeline.gpu_check.settings import attention_size

    return check_attention(attention_size(device), use_device(device))


def _check_zero(stage: int, device: str, folder: Path) -> Outcome:
    from transloom.pipeline.gpu_check.device import use_device
    from transloom.pipeline.gpu_check.engines import check_zero
    from transloom.pipeline.gpu_check.settings import engine_size

    return check_zero(stage, engine_size(device), use_device(device), folder)


def _check_loss_scale(device: str, folder: Path) -> Outcome:
    from transloom.pipeline.gpu_check.device import use_device
    from transloom.pipeline.gpu_check.engines import check_loss_scale
    from transloom.pipeline.gpu_check.settings import engine_size

    return check_loss_scale(engine_size(device), use_device(device), folder)


def _run_demo(device: str, folder: Path) -> Outcome:
    from transloom.pipeline.gpu_check.demo import run_demo
    from transloom.pipeline.gpu_check.device import use_device
    from transloom.pipeline.gpu_check.settings import demo_size

    return run_demo(demo_size(device), use_device(device), folder / DEMO)


def _decode(device: str, folder: Path) -> Outcome:
    from transloom.pipeline.gpu_check.decoding import measure_decoding
    from transloom.pipeline.gpu_check.device import use_device
    from transloom.pipeline.gpu_check.settings import decoding_size

    return measure_decoding(decoding_size(device), use_device(device), folder / DEMO, folder)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"gpu-check: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
