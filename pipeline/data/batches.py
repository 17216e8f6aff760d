"""The examples of each step: a pure function of (lengths, budgets, seed, epoch), never of the number of workers.

An epoch is shuffled, sorted by length within pools of a few dozen steps, and cut into micro-batches of about
`micro_tokens` tokens; a step is `tokens / micro_tokens` micro-batches, of which rank r of W takes every W-th. So the
effective batch stays the same when the cluster shrinks or grows, and (epoch, step) is the place to resume from. This
module does not know a batch's content: `collate` makes a batch from rows of the examples.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from transloom.pipeline.errors import UserError
from transloom.pipeline.tasks.task import Batch, Examples

STEPS_PER_POOL = 64  # sorted together: more steps give more uniform lengths, fewer steps are more alike


@dataclass(frozen=True)
class BatchConfig:
    """The size of a step.

    Attributes:
        tokens: a step's budget in tokens, counted on each side without padding (the paper: 25,000).
        micro_tokens: tokens that a worker holds in memory at a time; at most tokens / micro_tokens workers share a
            step.
    """

    tokens: int = 4096
    micro_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.micro_tokens < 1:
            raise ValueError(f"micro_tokens: must be at least 1, not {self.micro_tokens}")
        if self.tokens < 1 or self.tokens % self.micro_tokens:
            raise ValueError(f"tokens: {self.tokens} is not a multiple of micro_tokens: {self.micro_tokens}")

    @property
    def micro_batches(self) -> int:
        """Micro-batches in a step."""
        return self.tokens // self.micro_tokens


def plan_epoch(lengths: np.ndarray, config: BatchConfig, seed: int, epoch: int) -> list[np.ndarray]:
    """The epoch's micro-batches in order, each an array of rows; every row stands in exactly one.

    Args:
        lengths: (examples, columns) elements of each column; for translation tokens with </s>.
    Raises:
        UserError: a single example is larger than batch.micro_tokens.
    """
    sizes = lengths.max(axis=1)
    if len(sizes) and sizes.max() > config.micro_tokens:
        raise UserError(
            f"batch.micro_tokens: {config.micro_tokens} is less than the longest example of train, {sizes.max()} "
            "tokens; raise it, or leave longer examples out (clean.max_bytes)"
        )
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(sizes))
    micro_batches: list[np.ndarray] = []
    pool_tokens = STEPS_PER_POOL * config.tokens
    pool_of = np.cumsum(sizes[order]) // pool_tokens
    for pool in np.split(order, np.flatnonzero(np.diff(pool_of)) + 1):
        by_length = pool[np.lexsort(lengths[pool].T)]  # by the last column, then by the columns before
        cut = _cut(lengths[by_length], config.micro_tokens)
        pool_batches = np.split(by_length, cut)
        micro_batches += [pool_batches[i] for i in random.permutation(len(pool_batches))]
    return micro_batches


def _cut(lengths: np.ndarray, budget: int) -> list[int]:
    """The places to cut consecutive examples at, so that no column of a piece has more than `budget` elements."""
    ends = np.cumsum(lengths, axis=0, dtype=np.int64).T
    cuts, start = [], 0
    while True:
        before = ends[:, start - 1] if start else np.zeros(len(ends), np.int64)
        limits = zip(ends, before + budget, strict=True)
        end = min(int(np.searchsorted(of_column, limit, side="right")) for of_column, limit in limits)
        if end >= ends.shape[1]:
            return cuts
        cuts.append(end)
        start = end


@dataclass(frozen=True)
class Step:
    """A rank's part of an optimizer step.

    Attributes:
        epoch, index: the step's place; index counts the epoch's steps from 0.
        examples: of the epoch; `rows` are rows of these.
        batches: this rank's micro-batches; all ranks have equally many.
        rows: each micro-batch's examples.
        shares: 1.0 a micro-batch; 0.0 for the stand-in of a rank with none left, which must still take part.
        seeds: of each micro-batch, by its place in the plan: dropout is the same on any rank.
        tokens: of the whole step, over all ranks, by column.
        loss_count: the divisor of the step's summed loss.
    """

    epoch: int
    index: int
    examples: Examples
    batches: list[Batch]
    rows: list[np.ndarray]
    shares: list[float]
    seeds: list[int]
    tokens: dict[str, int]
    loss_count: int


def _reorder(
    plan: list[np.ndarray], config: BatchConfig, seed: int, epoch: int, reordered: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """An epoch's micro-batches in another order from each place (epoch, index) of `reordered` on; in later epochs all
    micro-batches are reordered. Every example still stands in exactly one."""
    for count, (from_epoch, from_index) in enumerate(reordered, start=1):
        if from_epoch <= epoch:
            first = from_index * config.micro_batches if from_epoch == epoch else 0
            rest = plan[first:]
            order = np.random.default_rng([seed, epoch, count]).permutation(len(rest))
            plan = [*plan[:first], *(rest[i] for i in order)]
    return plan


def iterate_steps(
    examples: Examples,
    collate: Callable[[Examples, Sequence[int] | np.ndarray], Batch],
    loss_column: str,
    config: BatchConfig,
    seed: int,
    *,
    rank: int,
    world_size: int,
    epoch: int = 0,
    index: int = 0,
    reordered: Sequence[Sequence[int]] = (),
    of_epoch: Callable[[Examples, int, int], Examples] = lambda examples, seed, epoch: examples,
) -> Iterator[Step]:
    """Yields steps for ever, from (epoch, index) on.

    Args:
        collate: makes a batch from rows of the examples.
        loss_column: the column whose number of elements divides a step's loss.
        reordered: places (epoch, index), oldest first, from which the micro-batches come in another order.
        of_epoch: (examples, seed, epoch) to the epoch's examples.
    Raises:
        UserError: there are no examples, or an example is too long.
    """
    if not len(examples):
        raise UserError("corpus.train: no training examples are left after cleaning")
    while True:
        of_this = of_epoch(examples, seed, epoch)
        if not len(of_this):
            raise UserError("corpus.train: all training examples are too long, and left out")
        lengths = of_this.lengths
        plan = _reorder(plan_epoch(lengths, config, seed, epoch), config, seed, epoch, reordered)
        first = index * config.micro_batches
        while first < len(plan):
            micro = plan[first : first + config.micro_batches]
            mine = range(rank, len(micro), world_size)
            missing = -(-len(micro) // world_size) - len(mine)
            places = [*mine] + [0] * missing
            chosen = [micro[i] for i in mine] + [micro[0][:1]] * missing
            totals = lengths[np.concatenate(micro)].sum(axis=0).tolist()
            tokens = dict(zip(of_this.columns, totals, strict=True))
            yield Step(
                epoch=epoch,
                index=first // config.micro_batches,
                examples=of_this,
                batches=[collate(of_this, rows) for rows in chosen],
                rows=chosen,
                shares=[1.0] * len(mine) + [0.0] * missing,
                seeds=[int(np.random.SeedSequence([seed, epoch, first + i]).generate_state(1)[0]) for i in places],
                tokens=tokens,
                loss_count=tokens[loss_column],
            )
            first += config.micro_batches
        epoch, index = epoch + 1, 0


def ahead(steps: Iterator[Step], device: torch.device) -> Iterator[Step]:
    """Moves the steps' batches to the device. Each step is made in the background while the previous one is used."""

    def make() -> Step:
        step = next(steps)
        return replace(step, batches=[batch.to(device) for batch in step.batches])

    with ThreadPoolExecutor(1, "batches") as background:
        coming = background.submit(make)
        while True:
            step = coming.result()
            coming = background.submit(make)
            yield step
