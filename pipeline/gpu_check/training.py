"""The speed and memory of a training step in bf16: ours, torch.nn.Transformer's or Marian's, one a process.

The share of the machine is that of a matrix product which is measured in the same process, just before and after.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from transloom.model.flops import training_flops
from transloom.pipeline.bench.report import Spread
from transloom.pipeline.bench.task import Burst, Kind, Task
from transloom.pipeline.bench.training import make_matmul, make_member
from transloom.pipeline.gpu_check.outcome import Outcome, Target
from transloom.pipeline.gpu_check.random_corpus import write_random_shards
from transloom.pipeline.gpu_check.settings import TrainingSize
from transloom.pipeline.train.engine import EngineConfig, EngineName, OptimizerConfig, PrecisionConfig
from transloom.pipeline.train.optimizer import Precision
from transloom.pipeline.train.schedule import ScheduleConfig

SEED = 1


def measure_training(kind: Kind, size: TrainingSize, device: torch.device, folder: Path) -> Outcome:
    """Takes steps on random tokens.

    Args:
        folder: for the shards.
    """
    use_gpu = device.type == "cuda"
    shards = folder / f"random-{size.pairs}-{size.vocab_size}"
    write_random_shards(shards, size.pairs, size.vocab_size, SEED)
    products = [_matmul(size, use_gpu)]
    answer, ready = make_member(task_of(kind, size, shards, use_gpu))
    _take(answer, size.warm_up)
    if use_gpu:
        torch.cuda.reset_peak_memory_stats()
    rounds = [_take(answer, size.steps) for _ in range(size.rounds)]
    del answer
    gc.collect()
    if use_gpu:
        torch.cuda.empty_cache()
    products.append(_matmul(size, use_gpu))
    return _outcome(kind, size, rounds, products, ready.imported_bytes, use_gpu)


def task_of(kind: Kind, size: TrainingSize, shards: Path, use_gpu: bool) -> Task:
    """The training; the paper's recipe, in bf16."""
    return Task(
        kind=kind,
        engine=EngineConfig(EngineName.torch),
        model=size.model,
        batch=size.batch,
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(),
        total_steps=100_000,  # the paper's, which its schedule does not ask for
        precision=PrecisionConfig(Precision.bf16),
        label_smoothing=0.1,
        seed=SEED,
        shards=str(shards),
        vocab_size=size.vocab_size,
        use_gpu=use_gpu,
    )


def _take(answer: Callable[[int], Burst | None], steps: int) -> Burst:
    burst = answer(steps)
    assert isinstance(burst, Burst)
    return burst


def _matmul(size: TrainingSize, use_gpu: bool) -> float:
    """FLOP/s of a large product in bf16; its matrices are gone when it returns."""
    answer, _ = make_matmul(use_gpu, torch.bfloat16)
    answer(size.matmul_seconds / 2)  # to warm up
    return answer(size.matmul_seconds)


def _outcome(
    kind: Kind,
    size: TrainingSize,
    rounds: Sequence[Burst],
    products: Sequence[float],
    imported_bytes: int,
    use_gpu: bool,
) -> Outcome:
    speed = Spread.of([one.target_tokens / one.seconds for one in rounds])
    flops = Spread.of(
        [
            training_flops(size.model, size.vocab_size, one.source_tokens, one.target_tokens) / one.seconds
            for one in rounds
        ]
    )
    product = Spread.of(products)
    share = flops.median / product.median
    peak = max(one.gpu_peak_bytes if use_gpu else one.peak_bytes for one in rounds)
    figures = {
        "system": kind.value,
        "target_tokens_per_second": asdict(speed),
        "source_tokens_per_second": asdict(Spread.of([one.source_tokens / one.seconds for one in rounds])),
        "model_flops_per_second": asdict(flops),
        "matmul_flops_per_second": asdict(product),
        "share_of_matmul": share,
        "peak_bytes": peak,
        "peak_is_of": "the GPU" if use_gpu else "the process",
        "imported_bytes": imported_bytes,
        "target_tokens_per_step": rounds[0].target_tokens / size.steps,
        "milliseconds_per_step": asdict(Spread.of([1000 * one.seconds / size.steps for one in rounds])),
        "loss": rounds[-1].loss / rounds[-1].target_tokens,
        "rounds": [asdict(one) for one in rounds],
    }
    summary = (
        f"{speed.median:,.0f} target tokens/s ({speed.least:,.0f} to {speed.most:,.0f}), "
        f"{share:.0%} of {product.median / 1e12:,.2f} TFLOP/s, {peak / 2**30:.2f} GiB"
    )
    targets = []
    if size.goal is not None and kind is Kind.ours:
        what = "target tokens/s (the goal is an H200's)"
        targets.append(Target(what, speed.median, size.goal, is_required=False))
    return Outcome(summary, figures, targets)
