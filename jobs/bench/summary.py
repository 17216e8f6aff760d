"""What the bench says: on which machine, tables, and its run in the tracker."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transloom.jobs.bench.length import length_metrics
from transloom.jobs.config.compose import to_dict
from transloom.jobs.config.schema import Config
from transloom.jobs.ray_cluster.session import ALLOCATOR
from transloom.jobs.runs.summary import print_next
from transloom.jobs.runs.workspace import output_dir
from transloom.jobs.terminal.console import clock, console, quantity, table
from transloom.pipeline.processor import processor_flags, processor_name
from transloom.pipeline.run_folder import MODEL_FOLDER
from transloom.pipeline.tracking.uploader import MlflowTracker

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")  # those that products go by
PACKAGES = ("torch", "ray", "deepspeed", "transformers", "ctranslate2")
DISTURBED = 0.15  # share of the machine's processors that others had


def machine(use_gpu: bool) -> dict[str, Any]:
    """What the figures depend on, beside the code."""
    import torch

    flags = processor_flags()
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [flag for flag in FLAGS if flag in flags],
        "gpu": torch.cuda.get_device_name() if use_gpu else None,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES if find_spec(name)},
        "allocator": ALLOCATOR,
    }


def print_bench(result: Mapping[str, Any], folder: Path) -> None:
    about = result["machine"]
    flags = " ".join(about["flags"]) or "no vector instructions known here"
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    console.print(f"\n{about['gpu'] or about['processor']}, {about['cores']} cores ({flags})\n{versions}")
    settings = " ".join(f"{key}={value}" for key, value in about["allocator"].items())
    console.print(f"In the environment of all contenders: {settings}")
    ratios: list[Mapping[str, Any]] = []
    if training := result.get("training"):
        _print_training(training, result)
        ratios += training["ratios"]
    if decoding := result.get("decoding"):
        if "new_tokens" in decoding:
            _print_continuing(decoding)
        else:
            _print_decoding(decoding)
        ratios += decoding["ratios"]
    _print_ratios(ratios)
    for part, figures in (("Training", training), ("Decoding", decoding)):
        if figures and "measured" in figures and figures["measured"]["turns"] < figures["measured"]["of"]:
            measured = figures["measured"]
            console.print(f"{part} was stopped after {measured['turns']} of {measured['of']} turns.", style="bold")
    for note in [*(training["notes"] if training else []), *(decoding["notes"] if decoding else [])]:
        console.print(note)
    console.print(
        f"\nFigures  {folder / 'bench.json'}\nPicture  {folder / 'bench.png'}\nTook     {clock(result['seconds'])}"
    )
    if "stopped" in result:
        return
    is_text = decoding is not None and "new_tokens" in decoding  # its corpus is one of the settings
    if (folder / MODEL_FOLDER).exists() and not is_text:
        print_next("transloom ui", f"transloom bench {folder / MODEL_FOLDER} part=decode  # the same weights again")
    else:
        print_next("transloom ui")


def _print_training(training: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    bench, settings = result["bench"], result["settings"]
    contenders: Mapping[str, Mapping[str, Any]] = training["contenders"]
    steps = max(one["steps"] for one in contenders.values())
    has_source = any(one["source_tokens_per_second"]["median"] for one in contenders.values())
    columns = [
        "contender",
        "target tok/s",
        "least-most",
        *(["source tok/s"] if has_source else []),
        "model FLOP/s",
        "of matmul",
        "peak",
        "imports",
    ]
    columns += [f"loss at {steps}", "others' CPUs"]
    rows = []
    for name, one in contenders.items():
        target = one["target_tokens_per_second"]
        peak = one["gpu_peak_bytes"] or one["peak_bytes"]
        rows.append(
            [
                name,
                f"{target['median']:,.0f}",
                _range(target),
                *([f"{one['source_tokens_per_second']['median']:,.0f}"] if has_source else []),
                quantity(one["model_flops_per_second"]["median"]).strip(),
                f"{one['share_of_matmul']:.1%}",
                f"{peak / 1e6:,.0f} MB",
                f"{one['imported_bytes'] / 1e6:,.0f} MB",
                f"{one['loss']:.3f}" if one["steps"] == steps else "-",  # a stopped round, or one that was gone on with
                f"{one['other_cpu_share']:.2f}",
            ]
        )
    dtype = settings["precision"]["dtype"]
    title = f"\nTraining in {dtype} on {settings['corpus']['name']}: {bench['rounds']} rounds of {bench['steps']} steps"
    console.print(table(title, columns, rows, right=tuple(range(1, len(columns)))))
    product = quantity(training["matmul_flops_per_second"]["median"])
    console.print(
        f"Medians, tokens without padding. A matrix product in {dtype} does {product}FLOP/s here. Memory is the most\n"
        "that its processes had resident; imports: before there was a model. Loss: nats per target token, last turn.\n"
        "Others' CPUs: processors that other processes used meanwhile, those of Ray among them."
    )
    cores = result["machine"]["cores"]
    if max(one["other_cpu_share"] + one["stolen_cpu_share"] for one in contenders.values()) > DISTURBED * cores:
        console.print("The machine was busy with other work: don't trust these figures.", style="bold")


def _print_decoding(decoding: Mapping[str, Any]) -> None:
    rows = []
    for name, by_beam in decoding["contenders"].items():
        for beam, one in by_beam.items():
            speed = one["sentences_per_second"]
            rows.append(
                [
                    name,
                    beam,
                    f"{speed['median']:,.1f}",
                    _range(speed, 1),
                    f"{one['bleu']:.2f}",
                    f"{one['identical_to_ours']:.1%}",
                    f"{one['peak_bytes'] / 1e6:,.0f} MB",
                ]
            )
    columns = ["contender", "beam", "sentences/s", "least-most", "BLEU", "as ours", "peak"]
    title = f"\nDecoding, in fp32 where nothing else is said: {decoding['sentences']} sentences of the test set"
    console.print(table(title, columns, rows, right=(1, 2, 3, 4, 5, 6)))
    without = "; ".join(
        f"{name} {one['identical_to_ours']:.1%} as ours, BLEU {one['bleu']:.2f}"
        for name, one in decoding["without_length_penalty"].items()
    )
    console.print(
        "1 x 2: one process of two threads; 2 x 1: two at a time with a thread each. Each with its own formula of the\n"
        f"length penalty, {decoding['length_penalty']:g}. Without one, where they agree: {without or 'not measured'}\n"
        f"BLEU: {decoding['signature']}, weights: {decoding['model']}"
    )


def _print_continuing(decoding: Mapping[str, Any]) -> None:
    rows = []
    for name, by_batch in decoding["contenders"].items():
        for batch, one in by_batch.items():
            speed = one["tokens_per_second"]
            told = [f"{speed['median']:,.0f}", _range(speed), f"{one['identical_to_ours']:.1%}"]
            rows.append([name, batch, *told, f"{one['peak_bytes'] / 1e6:,.0f} MB"])
    columns = ["contender", "at a time", "tokens/s", "least-most", "as ours", "peak"]
    title = (
        f"\nGreedy continuations with a cache, in fp32 where nothing else is said: {decoding['prompts']} prompts of "
        f"{decoding['prompt_tokens']} tokens, {decoding['new_tokens']} new ones each"
    )
    console.print(table(title, columns, rows, right=(1, 2, 3, 4, 5)))
    console.print(f"A tenth of the prompts where they are continued one by one. Weights: {decoding['model']}")


def _range(spread: Mapping[str, float], digits: int = 0) -> str:
    return f"{spread['least']:,.{digits}f}-{spread['most']:,.{digits}f}"


def _print_ratios(ratios: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        [
            one["what"],
            f"{one['value']:.3f}",
            _range(one["spread"], 2),
            f"{'at least' if one['at_least'] else 'at most'} {one['goal']:g}",
            "met" if one["is_met"] else "not met",
        ]
        for one in ratios
    ]
    if rows:
        title = "\nRatios, and the targets that were set for Multi30k on two cores"
        console.print(table(title, ["ratio", "value", "by round", "target", ""], rows, right=(1, 2)))


def report_bench(config: Config, result: Mapping[str, Any], folder: Path) -> None:
    """The bench as a run of the tracker: settings, every figure, the picture. Nothing where tracking is off."""
    if not config.tracking.enabled:
        return
    about = result["machine"]
    tags = {"corpus": config.corpus.name, "environment.machine": f"{platform.machine()}, {about['processor']}"}
    tags |= {f"environment.{name}": version for name, version in about["versions"].items()}
    tracker = MlflowTracker(config.tracking, output_dir(config), folder, f"bench {folder.name}", tags)
    tracker.log_params({**to_dict(config), "bench": result["bench"]})
    tracker.log_metrics(_metrics(result), 0)
    tracker.log_artifact(folder / "bench.json")
    tracker.log_figure(folder / "bench.png")
    tracker.close("FINISHED")


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    if lengths := result.get("lengths"):
        return length_metrics(lengths)
    metrics: dict[str, float] = {}
    if training := result.get("training"):
        for name, one in training["contenders"].items():
            metrics[f"{_key(name)}/target_tokens_per_second"] = one["target_tokens_per_second"]["median"]
            metrics[f"{_key(name)}/peak_bytes"] = one["gpu_peak_bytes"] or one["peak_bytes"]
    if decoding := result.get("decoding"):
        for name, by_beam in decoding["contenders"].items():
            for beam, one in by_beam.items():
                if "tokens_per_second" in one:
                    metrics[f"{_key(name)}/batch_{beam}/tokens_per_second"] = one["tokens_per_second"]["median"]
                else:
                    metrics[f"{_key(name)}/beam_{beam}/sentences_per_second"] = one["sentences_per_second"]["median"]
    for part in (training, decoding):
        metrics |= {f"ratios/{_key(one['what'])}": one["value"] for one in (part["ratios"] if part else [])}
    return metrics


def _key(name: str) -> str:
    """A name that every tracker takes."""
    return "_".join("".join(c if c.isalnum() or c in "-." else " " for c in name).split())
