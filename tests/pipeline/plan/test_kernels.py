"""How many kernels a worker comes to keep: by what batches really look like, growing and bounded."""

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from transloom.pipeline.data.batches import BatchConfig
from transloom.pipeline.data.pairs import pair_steps
from transloom.pipeline.plan.kernels import MOST_BYTES, OF_GRID, OF_PAIR, OF_TOKENS, _shapes, kernel_bytes
from transloom.pipeline.plan.probe import RandomWords
from transloom.pipeline.plan.volume import random_lengths

ROOT = Path(__file__).resolve().parents[3]

BATCH = BatchConfig(tokens=1024, micro_tokens=256)
LENGTHS = random_lengths(14.0, 60), random_lengths(16.0, 60)


def test_shapes_are_those_of_the_batches_that_a_worker_gets() -> None:
    pairs = RandomWords(LENGTHS, 500)
    steps = list(islice(pair_steps(pairs, BATCH, 3, rank=0, world_size=2), 12))  # type: ignore[arg-type]
    batches = [batch for step in steps for batch in step.batches]
    found = [
        [(*side.shape, len(row)) for side, row in ((b.source_layout, b.source), (b.target_layout, b.target))]
        for b in batches
    ]
    assert list(islice(_shapes(LENGTHS, BATCH, 3, workers=2), len(found))) == found


def test_equal_sentences_need_the_same_kernels_again_and_again() -> None:
    same = np.full(1024, 16, dtype=np.int32)  # sixteen in every micro-batch
    assert kernel_bytes((same, same), BATCH, 1, 1, 50) == OF_TOKENS + OF_GRID + OF_PAIR


def test_a_language_model_has_one_side() -> None:
    same = np.full(1024, 16, dtype=np.int32)
    assert kernel_bytes((same,), BATCH, 1, 1, 50) == OF_TOKENS + OF_GRID


def test_memory_grows_with_new_shapes_up_to_what_is_kept() -> None:
    grown = [kernel_bytes(LENGTHS, BATCH, 1, 1, count) for count in (1, 10, 100, 1000, 100_000)]
    assert grown == sorted(grown) and grown[0] < grown[2] / 5
    assert grown[-1] <= MOST_BYTES


# Prints, for each precision, whether it keeps kernels, and by how many bytes the heap grows with each new shape.
NEW_SHAPES = """
import ctypes
import torch
from transloom.pipeline.plan.kernels import keeps_kernels
from transloom.pipeline.train.optimizer import TORCH_DTYPES

class Heap(ctypes.Structure):  # glibc's struct mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

mallinfo = ctypes.CDLL("libc.so.6").mallinfo2
mallinfo.restype = Heap

def train(rows):
    x = torch.randn(rows, 6, 16, dtype=dtype, requires_grad=True)
    (x @ x.transpose(1, 2)).sum().backward()

for precision, dtype in TORCH_DTYPES.items():
    train(2)
    before = mallinfo()
    for rows in range(3, 53):
        train(rows)
    after = mallinfo()
    grown = after.uordblks + after.hblkhd - before.uordblks - before.hblkhd
    print(precision.value, keeps_kernels(precision), grown / 50)
"""


@pytest.mark.parametrize("most", ["DEFAULT", "AVX2"])
def test_kernels_are_counted_where_the_heap_grows_with_new_shapes(most: str) -> None:
    """On this processor, and on one that has no 16-bit instructions."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": most} if most != "DEFAULT" else None
    command = [sys.executable, "-c", NEW_SHAPES]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    lines = [line.split() for line in found.stdout.splitlines()]
    assert [line[0] for line in lines] == ["fp32", "bf16", "fp16"]
    for _, is_counted, bytes_of_a_shape in lines:
        assert (is_counted == "True") == (float(bytes_of_a_shape) > 20_000), found.stdout
    if most == "AVX2":
        assert all(is_counted == "False" for _, is_counted, _ in lines)
