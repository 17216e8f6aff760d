"""Training steps of a language model at several lengths of its text, with each kind of attention: time and memory, how
they grow, and where the curves cross.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from transloom.model.attention import SelfAttention
from transloom.model.build import build_model
from transloom.model.config import Attention, DecoderConfig
from transloom.model.decoder_only import DecoderOnly
from transloom.model.grid import grid_of
from transloom.model.kernels.linear import quicker_products, use_products
from transloom.model.packing import Layout
from transloom.pipeline.bench.config import BenchConfig
from transloom.pipeline.data.pieces import TextBatch
from transloom.pipeline.processes import peak_bytes
from transloom.pipeline.processor import processor_vendor
from transloom.pipeline.train.engine import EngineConfig, EngineName, make_engine
from transloom.pipeline.train.objective import LanguageModelObjective
from transloom.pipeline.train.optimizer import TORCH_DTYPES, OptimizerConfig, Precision, PrecisionConfig

KINDS = [kind.value for kind in Attention]
POINTS = 5  # the lengths of the last four doublings, which an exponent is fitted to
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class LengthTask:
    """A measurement in a process of its own: `length` tokens of one text a step.

    Attributes:
        model: with the kind of attention, without dropout, its context as long as the text.
        use_gpu: one GPU, else the CPU.
    """

    model: DecoderConfig
    vocab_size: int
    optimizer: OptimizerConfig
    precision: PrecisionConfig
    seed: int
    use_gpu: bool

    @staticmethod
    def of(base: "LengthTask", kind: str, length: int) -> "LengthTask":
        """The task with another attention and length."""
        model = dataclasses.replace(base.model, attention=Attention(kind), max_positions=length, dropout=0.0)
        return dataclasses.replace(base, model=model)


@dataclass(frozen=True)
class StepCost:
    """A training step: forward, backward and update.

    Attributes:
        seconds: of the step. peak_bytes: the most that the process has held so far, on a GPU of the GPU's memory.
        attention_seconds: of attention between its projections alone, forward and backward, in all layers.
    """

    seconds: float
    peak_bytes: int
    attention_seconds: float


def make_stepper(task: LengthTask) -> tuple[Any, int]:
    """The answerer of the process: asked for anything, it takes a step and answers with a StepCost. Its second value is
    the memory held before there was a model.

    The first step, which takes memory and prepares kernels, is the asker's to leave out. Peak memory is read before
    attention is measured alone.
    """
    imported = peak_bytes()
    device = torch.device("cuda" if task.use_gpu else "cpu")
    torch.manual_seed(task.seed)
    model = cast(DecoderOnly, build_model(task.model, task.vocab_size))
    if task.precision.dtype is Precision.fp32 and not task.use_gpu:
        use_products(quicker_products(model, processor_vendor()))
    objective = LanguageModelObjective(model, 0.0).train()
    engine = make_engine(objective, task.optimizer, task.precision, EngineConfig(EngineName.torch), device)
    length = task.model.max_positions
    tokens = torch.randint(task.vocab_size, (length + 1,), generator=torch.Generator().manual_seed(task.seed))
    batch = TextBatch(tokens[:-1], Layout.of(torch.tensor([length])), tokens[1:]).to(device)

    def answer(_: Any) -> StepCost:
        started_at = _now(device)
        engine.forward_backward(batch, scale=1 / length, last=True)
        engine.step(LEARNING_RATE)
        seconds = _now(device) - started_at
        peak = torch.cuda.max_memory_allocated(device) if task.use_gpu else peak_bytes()
        alone = _attention_seconds(model, batch.layout, TORCH_DTYPES[task.precision.dtype], device)
        return StepCost(seconds, peak, alone * task.model.layers)

    return answer, imported


def _attention_seconds(model: DecoderOnly, layout: Layout, dtype: torch.dtype, device: torch.device) -> float:
    """One layer's attention between the projections, forward and backward, of random queries, keys and values."""
    attention = cast(SelfAttention, model.layers[0].get_submodule("self_attention"))
    grid = grid_of(model, layout)
    batch, length = grid.shape
    heads, width = attention.key_value_heads, attention.key_width
    shapes = [(batch, heads, attention.queries_per_key * length, width), *[(batch, heads, length, width)] * 2]
    if attention.window is not None and length > attention.window.size:
        grid.block_mask(True, attention.window)  # made once for all layers
    inputs = [torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for shape in shapes]
    query, key, value = inputs
    started_at = _now(device)
    context: Tensor = attention.between_projections(query, key, value, grid, causal=True)
    torch.autograd.grad(context, inputs, torch.ones_like(context))
    return _now(device) - started_at


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


# What the measurements amount to -------------------------------------------------------------------------------------


def expected_seconds(medians: Mapping[int, float], length: int) -> float:
    """Of a step at a length, by those that were measured at shorter ones: as the last two have grown, at least
    proportionally; 0 where there are not two."""
    if len(medians) < 2:
        return 0.0
    (first, before), (second, last) = sorted(medians.items())[-2:]
    growth = max(1.0, math.log(last / before) / math.log(second / first))
    # Where attention becomes the largest part growth itself grows; a square is the most
    return last * (length / second) ** min(2.0, growth + 0.2)


def exponent(seconds: Mapping[int, Sequence[float]]) -> dict[str, float] | None:
    """The slope of log seconds over log length, over the last POINTS lengths: of the medians, and the least and the
    most of the single rounds. None of fewer lengths than three."""
    lengths = sorted(seconds)[-POINTS:]
    if len(lengths) < 3:
        return None
    # Long lengths have fewer rounds, which are taken again.
    rounds = max(len(seconds[length]) for length in lengths)
    slopes = [
        _slope([(length, seconds[length][i % len(seconds[length])]) for length in lengths]) for i in range(rounds)
    ]
    median = _slope([(length, statistics.median(seconds[length])) for length in lengths])
    return {
        "value": median,
        "least": min(slopes),
        "most": max(slopes),
        "from_length": lengths[0],
        "to_length": lengths[-1],
    }


def _slope(points: Sequence[tuple[float, float]]) -> float:
    x, y = ([math.log(point[i]) for point in points] for i in (0, 1))
    return statistics.linear_regression(x, y).slope


def crossing(first: Mapping[int, float], second: Mapping[int, float]) -> float | None:
    """The length from which `first` stays above `second`, both seconds by length: interpolated between lengths, on
    logarithmic axes. None where it is not above at the longest length that both have; the shortest length where it is
    always above."""
    lengths = sorted(first.keys() & second.keys())
    ratios = [math.log(first[length] / second[length]) for length in lengths]
    if not ratios or ratios[-1] <= 0:
        return None
    start = max((i for i, ratio in enumerate(ratios) if ratio <= 0), default=None)
    if start is None:
        return float(lengths[0])
    share = -ratios[start] / (ratios[start + 1] - ratios[start])
    return lengths[start] * (lengths[start + 1] / lengths[start]) ** share


def length_result(lines: Sequence[Mapping[str, Any]], bench: BenchConfig) -> dict[str, Any]:
    """What the lines of a bench amount to: of each kind its measurements by length, exponents and crossings."""
    kinds: dict[str, Any] = {}
    for kind in KINDS:
        own = sorted((line for line in lines if line["attention"] == kind), key=lambda line: line["length"])
        measured = [line for line in own if "seconds" in line]
        if not own:
            continue
        rest = {
            line["length"]: [max(1e-9, a - b) for a, b in zip(line["seconds"], line["attention_seconds"], strict=True)]
            for line in measured
        }
        alone = {line["length"]: line["attention_seconds"] for line in measured}
        kinds[kind] = {
            "lengths": {
                str(line["length"]): {
                    "seconds": _spread(line["seconds"]),
                    "attention_seconds": _spread(line["attention_seconds"]),
                    "peak_bytes": line["peak_bytes"],
                    "imported_bytes": line["imported_bytes"],
                }
                for line in measured
            },
            "left_out": {str(line["length"]): line["expected_seconds"] for line in own if "seconds" not in line},
            "exponent": exponent({line["length"]: line["seconds"] for line in measured}),
            "attention_exponent": exponent(alone),
            "attention_above_rest": crossing(_medians(alone), _medians(rest)),
        }
    steps = {
        kind: _medians(
            {line["length"]: line["seconds"] for line in lines if line["attention"] == kind and "seconds" in line}
        )
        for kind in kinds
    }
    return {
        "kinds": kinds,
        "full_slower_than": {
            kind: crossing(steps[Attention.full.value], steps[kind])
            for kind in kinds
            if kind != Attention.full.value and Attention.full.value in steps
        },
        "measured": {"turns": len(lines), "of": len(KINDS) * len(bench.lengths)},
    }


def _medians(seconds: Mapping[int, Sequence[float]]) -> dict[int, float]:
    return {length: statistics.median(values) for length, values in seconds.items()}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}
