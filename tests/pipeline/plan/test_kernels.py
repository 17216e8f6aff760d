"""How many kernels a worker comes to keep: by what batches really look like, growing and bounded."""

from itertools import islice

import numpy as np

from pipeline.data.batches import BatchConfig, iterate_steps
from pipeline.plan.kernels import MOST_BYTES, OF_GRID, OF_PAIR, OF_TOKENS, _shapes, kernel_bytes
from pipeline.plan.probe import RandomPairs
from pipeline.plan.volume import random_lengths

BATCH = BatchConfig(tokens=1024, micro_tokens=256)
LENGTHS = random_lengths(14.0, 60), random_lengths(16.0, 60)


def test_shapes_are_those_of_the_batches_that_a_worker_gets() -> None:
    pairs = RandomPairs(LENGTHS, 500)
    steps = list(islice(iterate_steps(pairs, BATCH, 3, rank=0, world_size=2), 12))  # type: ignore[arg-type]
    batches = [batch for step in steps for batch in step.batches]
    found = [
        [(*side.grid, len(row)) for side, row in ((b.source_layout, b.source), (b.target_layout, b.target))]
        for b in batches
    ]
    assert list(islice(_shapes(LENGTHS, BATCH, 3, workers=2), len(found))) == found


def test_equal_sentences_need_the_same_kernels_again_and_again() -> None:
    same = np.full(1024, 16, dtype=np.int32)  # sixteen in every micro-batch
    assert kernel_bytes((same, same), BATCH, 1, 1, 50) == OF_TOKENS + OF_GRID + OF_PAIR


def test_memory_grows_with_new_shapes_up_to_what_is_kept() -> None:
    grown = [kernel_bytes(LENGTHS, BATCH, 1, 1, count) for count in (1, 10, 100, 1000, 100_000)]
    assert grown == sorted(grown) and grown[0] < grown[2] / 5
    assert grown[-1] <= MOST_BYTES
