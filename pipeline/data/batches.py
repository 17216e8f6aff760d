"""Which pairs make which step: a pure function of (lengths, budgets, seed, epoch), never of the number of workers.

An epoch is shuffled, sorted by length within pools of a few dozen steps, and cut into micro-batches of about
`micro_tokens` tokens; a step is `tokens / micro_tokens` micro-batches, of which rank r of W takes every W-th. So the
effective batch stays the same when the cluster shrinks or grows, and (epoch, step) says where to resume.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model.packing import Layout
from pipeline.data.shards import PairDataset
from pipeline.data.tokenizer import BOS_ID, PAD_ID
from pipeline.errors import UserError

STEPS_PER_POOL = 64  # sorted together: more makes purer lengths, fewer makes steps more alike
# A batch's tokens and sentences are filled up to multiples of these, so that their numbers repeat: libraries prepare a
# kernel for every shape that is new, which took 10 % of a training step on a CPU.
ROW_MULTIPLE, SENTENCE_MULTIPLE = 64, 8


@dataclass(frozen=True)
class BatchConfig:
    """How much a step reads.

    Attributes:
        tokens: a step's budget in tokens, counted on each side without padding (the paper: 25,000).
        micro_tokens: what one worker holds in memory at a time; tokens / micro_tokens is the largest number of
            workers that share a step.
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


@dataclass(frozen=True)
class Batch:
    """One micro-batch of packed pairs, then sentences of <pad> as filler. Letters: S source, T target tokens; M of the
    T are real.

    Attributes:
        source: (S,) ids, each sentence ending in </s>.
        target: (T,) ids the decoder reads: <s> and all but the last of each sentence.
        labels: (M,) ids the decoder should say: each sentence with its </s>; none for the filler behind them.
        source_tokens: how many of S are real.
    """

    source: Tensor
    source_layout: Layout
    target: Tensor
    target_layout: Layout
    labels: Tensor
    source_tokens: int

    def to(self, device: torch.device) -> "Batch":
        """The same on another device; does not wait for it."""
        if device.type == "cpu":
            return self
        # Only from pinned memory does a copy run beside the computation.
        source, target, labels = (
            x.pin_memory().to(device, non_blocking=True) for x in (self.source, self.target, self.labels)
        )
        source_layout, target_layout = self.source_layout.to(device), self.target_layout.to(device)
        return Batch(source, source_layout, target, target_layout, labels, self.source_tokens)

    @property
    def padding_share(self) -> float:
        """What part of both sides' padded grids, where attention works, is padding or filler."""
        cells = self.source_layout.to_grid.numel() + self.target_layout.to_grid.numel()
        return 1.0 - (self.source_tokens + self.labels.numel()) / cells


def plan_epoch(
    source_lengths: np.ndarray, target_lengths: np.ndarray, config: BatchConfig, seed: int, epoch: int
) -> list[np.ndarray]:
    """The epoch's micro-batches in order, each an array of pair indices; every pair stands in exactly one.

    Args:
        source_lengths, target_lengths: (pairs,) tokens with </s>.
    Raises:
        UserError: a pair alone is larger than batch.micro_tokens.
    """
    sizes = np.maximum(source_lengths, target_lengths)
    if len(sizes) and sizes.max() > config.micro_tokens:
        raise UserError(
            f"batch.micro_tokens: {config.micro_tokens} is less than the longest training pair, {sizes.max()} tokens; "
            "raise it, or lower clean.max_bytes"
        )
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(sizes))
    micro_batches: list[np.ndarray] = []
    pool_tokens = STEPS_PER_POOL * config.tokens
    pool_of = np.cumsum(sizes[order]) // pool_tokens
    for pool in np.split(order, np.flatnonzero(np.diff(pool_of)) + 1):
        by_length = pool[np.lexsort((source_lengths[pool], target_lengths[pool]))]
        cut = _cut(source_lengths[by_length], target_lengths[by_length], config.micro_tokens)
        pool_batches = np.split(by_length, cut)
        micro_batches += [pool_batches[i] for i in random.permutation(len(pool_batches))]
    return micro_batches


def _cut(source_lengths: np.ndarray, target_lengths: np.ndarray, budget: int) -> list[int]:
    """Where to cut a row of pairs so that neither side of a piece has more than `budget` tokens."""
    source_ends, target_ends = np.cumsum(source_lengths), np.cumsum(target_lengths)
    cuts, start = [], 0
    while True:
        source_room = budget + (source_ends[start - 1] if start else 0)
        target_room = budget + (target_ends[start - 1] if start else 0)
        end = min(
            int(np.searchsorted(source_ends, source_room, side="right")),
            int(np.searchsorted(target_ends, target_room, side="right")),
        )
        if end >= len(source_ends):
            return cuts
        cuts.append(end)
        start = end


@dataclass(frozen=True)
class Step:
    """One optimizer step as one rank sees it.

    Attributes:
        epoch, index: where it stands; index counts the epoch's steps from 0.
        batches: this rank's micro-batches; all ranks have equally many.
        rows: the numbers of each one's pairs in the dataset.
        weights: 1.0 each; 0.0 for the stand-in of a rank that has none left, which must take part all the same.
        seeds: one for each micro-batch, by its place in the plan: dropout is the same on whichever rank it falls.
        source_tokens, target_tokens: of the whole step, over all ranks.
    """

    epoch: int
    index: int
    batches: list[Batch]
    rows: list[np.ndarray]
    weights: list[float]
    seeds: list[int]
    source_tokens: int
    target_tokens: int


def _reorder(
    plan: list[np.ndarray], config: BatchConfig, seed: int, epoch: int, reordered: Sequence[Sequence[int]]
) -> list[np.ndarray]:
    """An epoch's micro-batches in another order from each place (epoch, index) of `reordered` on; in later epochs all
    micro-batches are reordered. Every pair still stands in exactly one."""
    for count, (from_epoch, from_index) in enumerate(reordered, start=1):
        if from_epoch <= epoch:
            first = from_index * config.micro_batches if from_epoch == epoch else 0
            rest = plan[first:]
            order = np.random.default_rng([seed, epoch, count]).permutation(len(rest))
            plan = [*plan[:first], *(rest[i] for i in order)]
    return plan


def iterate_steps(
    pairs: PairDataset,
    config: BatchConfig,
    seed: int,
    *,
    rank: int,
    world_size: int,
    epoch: int = 0,
    index: int = 0,
    reordered: Sequence[Sequence[int]] = (),
) -> Iterator[Step]:
    """Steps for ever, from (epoch, index) on.

    Args:
        reordered: places (epoch, index), oldest first, from which the micro-batches come in another order.
    Raises:
        UserError: there are no pairs, or one is too long.
    """
    if not len(pairs):
        raise UserError("corpus.train: no training pairs are left after cleaning")
    while True:
        plan = plan_epoch(pairs.source_lengths, pairs.target_lengths, config, seed, epoch)
        plan = _reorder(plan, config, seed, epoch, reordered)
        first = index * config.micro_batches
        while first < len(plan):
            micro = plan[first : first + config.micro_batches]
            mine = range(rank, len(micro), world_size)
            missing = -(-len(micro) // world_size) - len(mine)
            places = [*mine] + [0] * missing
            chosen = [micro[i] for i in mine] + [micro[0][:1]] * missing
            yield Step(
                epoch=epoch,
                index=first // config.micro_batches,
                batches=[make_batch(pairs, indices) for indices in chosen],
                rows=chosen,
                weights=[1.0] * len(mine) + [0.0] * missing,
                seeds=[int(np.random.SeedSequence([seed, epoch, first + i]).generate_state(1)[0]) for i in places],
                source_tokens=int(sum(pairs.source_lengths[part].sum() for part in micro)),
                target_tokens=int(sum(pairs.target_lengths[part].sum() for part in micro)),
            )
            first += config.micro_batches
        epoch, index = epoch + 1, 0


def ahead(steps: Iterator[Step], device: torch.device) -> Iterator[Step]:
    """The same steps, their batches on the device: each is made in the background while the one before it is used."""

    def make() -> Step:
        step = next(steps)
        return replace(step, batches=[batch.to(device) for batch in step.batches])

    with ThreadPoolExecutor(1, "batches") as background:
        coming = background.submit(make)
        while True:
            step = coming.result()
            coming = background.submit(make)
            yield step


def make_batch(pairs: PairDataset, indices: Sequence[int] | np.ndarray) -> Batch:
    """Packs the named pairs."""
    sources = [pairs.source(i) for i in indices]
    labels = [pairs.target(i) for i in indices]
    source_filler, target_filler = filler([len(x) for x in sources], [len(x) for x in labels])
    source, source_layout = _pack(sources, source_filler)
    label_row, target_layout = _pack(labels, target_filler)
    target = label_row.roll(1)
    target[target_layout.positions == 0] = BOS_ID
    label_row = label_row[: sum(len(x) for x in labels)]
    return Batch(source, source_layout, target, target_layout, label_row, sum(len(x) for x in sources))


def _pack(sentences: list[np.ndarray], filler: list[int]) -> tuple[Tensor, Layout]:
    row = np.concatenate([*sentences, np.full(sum(filler), PAD_ID)]).astype(np.int64)
    return torch.from_numpy(row), Layout.of(torch.tensor([*(len(x) for x in sentences), *filler]))


def filler(source_lengths: list[int], target_lengths: list[int]) -> tuple[list[int], list[int]]:
    """Lengths of the sentences that fill a batch up, equally many on both sides, none longer than the real ones."""
    count = -len(source_lengths) % SENTENCE_MULTIPLE
    while True:
        source, target = (count + -(sum(real) + count) % ROW_MULTIPLE for real in (source_lengths, target_lengths))
        # Up to 2 tokens at least, for filler of single tokens would have to be 64 sentences
        if source <= count * max(2, *source_lengths) and target <= count * max(2, *target_lengths):
            return _share_out(source, count), _share_out(target, count)
        count += SENTENCE_MULTIPLE


def _share_out(tokens: int, count: int) -> list[int]:
    return [tokens // count + (i < tokens % count) for i in range(count)]
