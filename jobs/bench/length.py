"""The bench of lengths: each measurement in a fresh process, and what is printed of them."""

import dataclasses
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transloom.jobs.bench.contenders import cores, environment
from transloom.jobs.config.schema import Config
from transloom.jobs.terminal.console import clock, console, table
from transloom.model.config import Attention, DecoderConfig, Positions
from transloom.pipeline.bench.config import BenchConfig
from transloom.pipeline.bench.kept import Kept
from transloom.pipeline.bench.length import KINDS, LengthTask, StepCost, expected_seconds, make_stepper
from transloom.pipeline.data.text_tokenizer import TextTokenizerConfig
from transloom.pipeline.errors import UserError
from transloom.pipeline.processes import Meeting
from transloom.pipeline.progress import Progress
from transloom.pipeline.train.optimizer import Precision

EXPERIMENT = "long_context/full_1k"


def length_task(config: Config) -> LengthTask:
    """What is measured, but for the kind of attention and the length.

    Raises:
        UserError: the model is no language model, or can't have linear attention, naming the setting.
    """
    model = config.model
    if not isinstance(model, DecoderConfig) or not isinstance(config.tokenizer, TextTokenizerConfig):
        raise UserError(f"model: part=length measures language models (experiment={EXPERIMENT}); choose another model")
    if config.precision.dtype is Precision.fp16:
        raise UserError("precision.dtype: the bench measures in bf16 or fp32, not in fp16")
    if model.positions is Positions.alibi:
        raise UserError("model.positions: part=length measures linear attention too, which has no alibi; leave it out")
    return LengthTask(
        model=model,
        vocab_size=config.tokenizer.vocab_size,
        optimizer=config.optimizer,
        precision=config.precision,
        seed=config.seed,
        use_gpu=config.cluster.gpus_per_worker > 0,
    )


def measure_lengths(task: LengthTask, bench: BenchConfig, kept: Kept, progress: Progress) -> None:
    """Measures each kind at each length, the shortest first; a length at which a step would take longer than
    `bench.most_seconds` is left out, and the steps of one length take about as long, or are one.

    Args:
        kept: the measurements of earlier commands; gets those that are made.
    Raises:
        UserError: a process died or refused.
    """
    there = {(line["attention"], line["length"]): line for line in kept.of("length")}
    done, total = len(there), len(KINDS) * len(bench.lengths)
    for length in bench.lengths:
        for kind in KINDS:
            if (kind, length) in there:
                continue
            measured = {
                n: statistics.median(line["seconds"])
                for (k, n), line in there.items()
                if k == kind and "seconds" in line
            }
            is_beyond = any(k == kind and "seconds" not in line for (k, _), line in there.items())
            expected = expected_seconds(measured, length)
            progress(f"lengths: {kind} attention at {length:,} tokens", done, total)
            if is_beyond or expected > bench.most_seconds:
                line = {"attention": kind, "length": length, "expected_seconds": expected}
            else:
                # A step of a minute varies less than one of a millisecond, and five of them are too long a wait.
                rounds = max(1, min(bench.rounds, int(bench.most_seconds / max(expected, 1))))
                costs, imported = _measure(LengthTask.of(task, kind, length), rounds, f"{kind}-{length}")
                line = {
                    "attention": kind,
                    "length": length,
                    "seconds": [cost.seconds for cost in costs],
                    "attention_seconds": [cost.attention_seconds for cost in costs],
                    "peak_bytes": costs[0].peak_bytes,  # before attention was measured alone
                    "imported_bytes": imported,
                }
            kept.add("length", **line)
            there[kind, length] = line
            done += 1


def _measure(task: LengthTask, rounds: int, name: str) -> tuple[list[StepCost], int]:
    """`rounds` steps after one that is not counted, in a fresh process, and the memory of its libraries."""
    with Meeting() as meeting:
        contender = meeting.meet(name, 1, meeting.start_processes(name, 1, environment(cores())))
        (imported,) = contender.ask(partial(make_stepper, task))
        (first,) = contender.ask(None)
        costs = [contender.ask(None)[0] for _ in range(rounds)]
    # The first step holds as much as any other, and attention has not been measured alone before its end.
    return [dataclasses.replace(cost, peak_bytes=first.peak_bytes) for cost in costs], imported


def print_lengths(result: Mapping[str, Any], folder: Path) -> None:
    """The table, the exponents and the crossings, for people."""
    found, about = result["lengths"], result["machine"]
    model = result["settings"]["model"]
    console.print(f"\n{about['gpu'] or about['processor']}, {about['cores']} cores")
    rows = []
    for name, kind in found["kinds"].items():
        for length, row in kind["lengths"].items():
            step, alone = row["seconds"], row["attention_seconds"]
            rows.append(
                [
                    name,
                    f"{int(length):,}",
                    f"{step['median']:.3f}",
                    f"{step['least']:.3f}-{step['most']:.3f}",
                    f"{alone['median'] / step['median']:.0%}",
                    f"{int(length) / step['median']:,.0f}",
                    f"{row['peak_bytes'] / 1e6:,.0f} MB",
                ]
            )
        for length, seconds in kind["left_out"].items():
            rows.append([name, f"{int(length):,}", f"({seconds:,.0f} expected)", "left out", "-", "-", "-"])
    shape = f"{model['layers']} layers, d_model {model['d_model']}, {model['num_heads']} heads"
    columns = ["attention", "tokens", "s a step", "least-most", "attention", "tok/s", "peak"]
    title = (
        f"\nTraining steps of one text, {shape}, window {model['window']}, {result['settings']['precision']['dtype']}"
    )
    console.print(table(title, columns, rows, right=(1, 2, 3, 4, 5, 6)))
    for name, kind in found["kinds"].items():
        for what, key in (("a step's time", "exponent"), ("attention's time alone", "attention_exponent")):
            if slope := kind[key]:
                console.print(
                    f"{name}: {what} grows with the length to the power of {slope['value']:.2f} "
                    f"({slope['least']:.2f}-{slope['most']:.2f}) from {slope['from_length']:,} to "
                    f"{slope['to_length']:,} tokens."
                )
        above = kind["attention_above_rest"]
        console.print(
            f"{name}: attention takes longer than the rest of the model "
            + ("at none of these lengths." if above is None else f"from {above:,.0f} tokens on.")
        )
    for name, length in found["full_slower_than"].items():
        where = "at none of these lengths" if length is None else f"from {length:,.0f} tokens on"
        console.print(f"{Attention.full.value}: slower than {name} {where}.")
    measured = found["measured"]
    if measured["turns"] < measured["of"]:
        console.print(f"Stopped after {measured['turns']} of {measured['of']} measurements.", style="bold")
    console.print(
        f"\nFigures  {folder / 'bench.json'}\nPicture  {folder / 'bench.png'}\nTook     {clock(result['seconds'])}"
    )


def length_metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a tracker."""
    metrics: dict[str, float] = {}
    for name, kind in found["kinds"].items():
        for length, row in kind["lengths"].items():
            metrics[f"{name}/tokens_{length}/seconds"] = row["seconds"]["median"]
            metrics[f"{name}/tokens_{length}/attention_seconds"] = row["attention_seconds"]["median"]
            metrics[f"{name}/tokens_{length}/peak_bytes"] = row["peak_bytes"]
        for key in ("exponent", "attention_exponent"):
            if kind[key]:
                metrics[f"{name}/{key}"] = kind[key]["value"]
        if kind["attention_above_rest"]:
            metrics[f"{name}/attention_above_rest"] = kind["attention_above_rest"]
    return metrics | {f"full_slower_than/{k}": v for k, v in found["full_slower_than"].items() if v}
