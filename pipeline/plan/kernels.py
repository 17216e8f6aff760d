"""Memory that grows while a CPU trains in 16 bits: oneDNN prepares a kernel for every shape of a product, and keeps it.
Where oneDNN does not compute in the type, torch has other kernels, which fit all shapes.

Shapes are the numbers of packed tokens, for the products of weights; the grids (sentences, longest sentence), for
those of self-attention; and both sides' grids together, for those between them. How many different ones a worker meets
follows from the sentences' lengths; what each of them takes was measured, of translations.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch

from transloom.pipeline.data.batches import BatchConfig, plan_epoch
from transloom.pipeline.data.packing import filler
from transloom.pipeline.train.optimizer import Precision

# Fitted to the heap in use of a worker on Multi30k, with models of 1.7, 7 and 25 million parameters: 5 % off at most.
# The model's width and heads do not matter. No more than 4096 kernels are kept (`ALLOCATOR` in
# jobs/ray_cluster/session.py).
OF_TOKENS, OF_GRID, OF_PAIR = 6.5e6, 3.05e6, 1.19e6
MOST_BYTES = 590e6
MOST_BATCHES, MOST_SENTENCES = 4000, 500_000  # that are looked at: hardly a shape is new after them


def keeps_kernels(precision: Precision) -> bool:
    """Whether this machine's CPU multiplies in a type by kernels that oneDNN keeps for every shape."""
    match precision:
        case Precision.fp32:
            return False
        case Precision.bf16:
            return torch.ops.mkldnn._is_mkldnn_bf16_supported()
        case Precision.fp16:
            return torch.ops.mkldnn._is_mkldnn_fp16_supported()
        case Precision.auto:
            raise ValueError("precision: auto must be decided first")


def kernel_bytes(
    lengths: tuple[np.ndarray, ...], batch: BatchConfig, seed: int, workers: int, micro_batches: int
) -> float:
    """What the kernels of a worker's first so many micro-batches take.

    Args:
        lengths: (pairs,) tokens of the source's and of the target's sentences, or (texts,) of a language model's alone.
        workers: who share the steps.
    """
    tokens: set[int] = set()
    grids: set[tuple[int, int]] = set()
    pairs: set[tuple[tuple[int, int], ...]] = set()
    sentences = 0
    for sides in islice(_shapes(lengths, batch, seed, workers), min(MOST_BATCHES, micro_batches)):
        tokens |= {side[2] for side in sides}
        grids |= {side[:2] for side in sides}
        if len(sides) > 1:
            pairs.add(tuple(side[:2] for side in sides))
        sentences += sides[0][0]
        if sentences > MOST_SENTENCES:
            break
    return min(MOST_BYTES, OF_TOKENS * len(tokens) + OF_GRID * len(grids) + OF_PAIR * len(pairs))


def _shapes(
    lengths: tuple[np.ndarray, ...], batch: BatchConfig, seed: int, workers: int
) -> Iterator[list[tuple[int, int, int]]]:
    """(sentences, longest, tokens) of each side of the micro-batches that one of the workers gets, for ever."""
    epoch = 0
    while True:
        for chosen in plan_epoch(np.stack(lengths, axis=1), batch, seed, epoch)[::workers]:
            sides = [side[chosen].tolist() for side in lengths]
            yield [
                (len(real) + len(added), -(-max(real) // 2) * 2, sum(real) + sum(added))
                for real, added in zip(sides, filler(sides), strict=True)
            ]
        epoch += 1
