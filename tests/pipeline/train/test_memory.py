"""A micro-batch that does not fit in memory: two halves, or an error that names the budget."""

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks

from transloom.model.build import build_model
from transloom.model.config import TransformerConfig
from transloom.model.losses import LossSum
from transloom.pipeline.data.batches import BatchConfig
from transloom.pipeline.data.pairs import collate_pairs, pair_steps
from transloom.pipeline.data.shards import SIDES
from transloom.pipeline.data.tokenizer import EOS_ID
from transloom.pipeline.errors import UserError
from transloom.pipeline.ranks import rank, world_size
from transloom.pipeline.train.engine import Engine, EngineConfig, EngineName, make_engine
from transloom.pipeline.train.loop import add_gradients
from transloom.pipeline.train.memory import OutOfMemory, explained, read_parts
from transloom.pipeline.train.objective import TranslationObjective
from transloom.pipeline.train.optimizer import OptimizerConfig, Precision, PrecisionConfig

ROOT = Path(__file__).resolve().parents[3]
SHAPE = TransformerConfig(d_model=32, d_ff=64, num_heads=4, encoder_layers=1, decoder_layers=1, dropout=0.0)
BATCH = BatchConfig(tokens=512, micro_tokens=128)
ENGINES = {
    "torch": EngineConfig(EngineName.torch),
    "zero 0": EngineConfig(EngineName.deepspeed, 0),
    "zero 1": EngineConfig(EngineName.deepspeed, 1),
    "zero 3": EngineConfig(EngineName.deepspeed, 3),
}


class Pairs:
    """Random sentences of 3 to 8 tokens."""

    columns = SIDES

    def __init__(self, count: int = 400, vocabulary: int = 24) -> None:
        random = np.random.default_rng(0)
        self.sentences = [
            np.append(random.integers(4, vocabulary, random.integers(2, 8)), EOS_ID).astype(np.uint16)
            for _ in range(count)
        ]
        self.lengths = np.array([[len(one)] * 2 for one in self.sentences], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.sentences)

    def get(self, column: str, row: int) -> np.ndarray:
        return self.sentences[row]


class Objective(TranslationObjective):
    """Has no memory for more than so many target tokens: at the end of the forward pass or of the backward pass."""

    limit, fails_backward, refused = 1 << 30, False, 0

    def forward(self, batch: Any) -> LossSum:
        loss = super().forward(batch)
        if len(batch.labels) <= self.limit:
            return loss
        type(self).refused += 1
        if not self.fails_backward:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return LossSum(_Full.apply(loss.total, self.model.embedding.weight), loss.num_tokens)  # type: ignore[arg-type]


class _Full(torch.autograd.Function):
    """Its gradient for the weight is there before that for the loss fails."""

    @staticmethod
    def forward(ctx: Any, total: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return total.view_as(total)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")


def make(name: str, **settings: Any) -> Engine:
    torch.manual_seed(0)
    objective = Objective(build_model(SHAPE, 24), 0.1).train()
    for key, value in settings.items():
        setattr(objective, key, value)
    precision = PrecisionConfig(Precision.fp32)
    return make_engine(objective, OptimizerConfig(), precision, ENGINES[name], torch.device("cpu"))


def trained(
    name: str, divides: bool = True, parts: int = 1, **settings: Any
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of this rank in three steps, and the weights after them."""
    pairs = Pairs()
    engine = make(name, **settings)
    losses = []
    for step in islice(pair_steps(pairs, BATCH, 3, rank=rank(), world_size=world_size()), 3):
        found = add_gradients(engine, step, collate_pairs if divides else None, parts)
        losses.append(float(found.sum()) / step.loss_count)
        engine.step(1e-3)
    return losses, engine.weights()


def assert_close(one: tuple[list[float], dict[str, torch.Tensor]], other: Any) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    start = make("torch").weights()
    moved = sum((other[1][name] - weight).norm() ** 2 for name, weight in start.items()) ** 0.5
    apart = sum((other[1][name] - weight).norm() ** 2 for name, weight in one[1].items()) ** 0.5
    assert apart < 0.01 * moved  # Adam magnifies the rounding of gradients near 0


@pytest.mark.parametrize("fails_backward", [False, True])
def test_a_batch_taken_in_halves_gives_the_same_training(fails_backward: bool) -> None:
    whole = trained("torch")
    Objective.refused = 0
    assert_close(trained("torch", limit=100, fails_backward=fails_backward), whole)
    assert Objective.refused > 3


@pytest.mark.parametrize(("settings", "parts"), [({"divides": False, "limit": 100}, 2), ({"limit": 20}, 4)])
def test_what_does_not_fit_in_halves_is_an_error(settings: dict[str, Any], parts: int) -> None:
    with pytest.raises(OutOfMemory, match=r"target tokens does not fit in memory \(CUDA out of memory") as refused:
        trained("torch", **settings)
    assert refused.value.parts == parts and refused.value.rows > 4


def refusal(parts: int, rows: int) -> OutOfMemory:
    batch = next(pair_steps(Pairs(), BATCH, 3, rank=0, world_size=1)).batches[0]
    return OutOfMemory(batch, parts, rows, "no memory")


@pytest.mark.parametrize(("parts", "rows", "more"), [(2, 2, 2), (4, 3, 4), (2, 40, 2)])
def test_the_next_workers_take_smaller_parts(tmp_path: Path, parts: int, rows: int, more: int) -> None:
    assert read_parts(tmp_path) == 1
    error = explained(refusal(parts, rows), tmp_path, 1, BATCH, longest=9)
    assert isinstance(error, MemoryError) and f"each micro-batch is taken in {more} parts" in str(error)
    assert read_parts(tmp_path) == more
    explained(refusal(2, 4), tmp_path, more, BATCH, longest=9)
    assert read_parts(tmp_path) == 2 * more


@pytest.mark.parametrize(("parts", "rows"), [(2, 1), (4, 2)])
def test_examples_that_do_not_fit_one_by_one_are_an_error_with_the_budget(
    tmp_path: Path, parts: int, rows: int
) -> None:
    error = explained(refusal(parts, rows), tmp_path, 2, BATCH, longest=9)
    assert isinstance(error, UserError) and read_parts(tmp_path) == 1
    assert str(error).startswith("batch.micro_tokens: ") and f"batch.micro_tokens={64 // parts}," in str(error)


def test_a_number_of_parts_that_can_not_be_kept_is_an_error(tmp_path: Path) -> None:
    assert isinstance(explained(refusal(2, 40), tmp_path / "gone", 1, BATCH, longest=9), UserError)


def test_a_training_cut_into_parts_is_the_same_training() -> None:
    """Micro-batches of 128 tokens have 16 to 40 examples: some of 30 parts are stand-ins."""
    whole = trained("torch")
    Objective.refused = 0
    for parts in (3, 30):
        assert_close(trained("torch", parts=parts, limit=60), whole)
    assert Objective.refused == 0


def test_other_errors_stay_what_they_are() -> None:
    engine = make("torch")
    engine.forward_backward = None  # type: ignore[assignment,method-assign]
    step = next(pair_steps(Pairs(), BATCH, 3, rank=0, world_size=1))
    with pytest.raises(TypeError):
        add_gradients(engine, step, collate_pairs)


def on_two_ranks() -> dict[str, Any]:
    """Training in which the second rank alone has too little memory, by engine; what the last engine refuses."""
    results: dict[str, Any] = {}
    for name in ENGINES:
        if name != "zero 3":
            results[name] = trained(name, limit=100 if rank() == 1 else 1 << 30), Objective.refused
    for name, settings in {"zero 1": {"fails_backward": True}, "zero 3": {}}.items():
        try:
            trained(name, limit=1, **settings)  # on both ranks, so that none waits
        except OutOfMemory as error:
            results[f"refused by {name}"] = error.parts
    for name in ("zero 1", "zero 3"):  # what does not fit on either rank, in as many parts as do
        results[f"{name} in parts"] = trained(name, parts=4, limit=60, fails_backward=True), Objective.refused
    return results


def test_a_rank_may_halve_alone_where_the_others_do_not_wait() -> None:
    first, second = run_ranks(on_two_ranks, 2)
    whole = trained("torch")
    for name in ("torch", "zero 0", "zero 1"):
        (losses, weights), _ = first[name]
        losses = [one + other for one, other in zip(losses, second[name][0][0], strict=True)]
        assert_close((losses, weights), whole)
    assert first["zero 1"][1] == 0 < second["torch"][1] < second["zero 0"][1] < second["zero 1"][1]
    # A backward pass under ZeRO can't be undone, and under ZeRO 3 all ranks take part in each.
    for name in ("refused by zero 1", "refused by zero 3"):
        assert first[name] == second[name] == 2
    for name in ("zero 1 in parts", "zero 3 in parts"):
        (losses, weights), refused = first[name]
        losses = [one + other for one, other in zip(losses, second[name][0][0], strict=True)]
        assert_close((losses, weights), whole)
        assert refused == first["zero 1 in parts"][1]


LIMITED = """
import re, resource, sys
from itertools import islice
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import test_memory as t
from transloom.pipeline.train import memory

BATCH = t.BatchConfig(tokens=16384, micro_tokens=16384)
pairs = t.Pairs(8000, vocabulary=2000)
torch.manual_seed(0)
objective = t.TranslationObjective(t.build_model(t.SHAPE, 2000), 0.1).train()
engine = t.make_engine(
    objective, t.OptimizerConfig(), t.PrecisionConfig(t.Precision.fp32), t.ENGINES["torch"], torch.device("cpu"))
step, other = islice(t.pair_steps(pairs, BATCH, 3, rank=0, world_size=1), 2)
before = float(t.add_gradients(engine, step, t.collate_pairs).sum())
engine.step(0.0)
counted = 1024 * int(re.search(sys.argv[2] + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
limit = counted + int(sys.argv[3]) * 1_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    again = float(t.add_gradients(engine, step, t.collate_pairs).sum())
    print("done", abs(again - before) < 1e-4 * before, memory._warn.cache_info().currsize)
except memory.OutOfMemory as error:
    print("refused", error)
"""


@pytest.mark.parametrize(
    ("counted", "megabytes", "expected"),
    [("VmSize", 20, "refused a micro-batch of "), ("VmPeak", -20, "done True 1")],
)
def test_a_limit_of_the_address_space(counted: str, megabytes: int, expected: str) -> None:
    """The logits of the whole micro-batch take 131 MB, those of a half 66 MB. The second case has a limit below
    what the whole one took at its peak: how much of that the process gives back is another part each time."""
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
    }
    command = [sys.executable, "-c", LIMITED, str(Path(__file__).parent), counted, str(megabytes)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert result.stdout.startswith(expected), result.stdout + result.stderr
