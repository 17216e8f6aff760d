"""Laws of the plan: each pair exactly once an epoch, whatever the number of workers; steps that don't depend on it."""

from itertools import islice

import numpy as np
import pytest
import torch

from transloom.pipeline.data.batches import BatchConfig, Step, ahead, plan_epoch
from transloom.pipeline.data.pairs import collate_pairs, pair_steps
from transloom.pipeline.data.shards import SIDES
from transloom.pipeline.data.tokenizer import BOS_ID, EOS_ID, PAD_ID
from transloom.pipeline.errors import UserError


class Pairs:
    """Pairs in memory; the first token of a source is the pair's number + 4."""

    columns = SIDES

    def __init__(self, count: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        source = random.integers(2, 30, count).astype(np.int32)
        target = np.maximum(2, source + random.integers(-3, 4, count)).astype(np.int32)
        self.lengths = np.stack((source, target), axis=1)
        self.source_lengths, self.target_lengths = self.lengths.T  # views

    def __len__(self) -> int:
        return len(self.lengths)

    def get(self, column: str, row: int) -> np.ndarray:
        side = SIDES.index(column)
        return np.array([row + 4] + [5 + side] * (self.lengths[row, side] - 2) + [EOS_ID], dtype=np.uint16)


CONFIG = BatchConfig(tokens=400, micro_tokens=100)


def steps(pairs: Pairs, rank: int, world_size: int, count: int, **start: int) -> list[Step]:
    stream = pair_steps(pairs, CONFIG, 7, rank=rank, world_size=world_size, **start)
    return list(islice(stream, count))


def pairs_of(step: Step) -> list[int]:
    """The numbers of the pairs that count."""
    used = [b for b, weight in zip(step.batches, step.shares, strict=True) if weight]
    firsts = [b.source[: b.source_tokens][b.source_layout.positions[: b.source_tokens] == 0] for b in used]
    return [int(token) - 4 for first in firsts for token in first]


def test_every_pair_stands_in_exactly_one_micro_batch_within_the_budget() -> None:
    pairs = Pairs(5000)
    plan = plan_epoch(pairs.lengths, CONFIG, seed=1, epoch=0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(5000))
    for part in plan:
        assert pairs.source_lengths[part].sum() <= 100
        assert pairs.target_lengths[part].sum() <= 100
    fill = np.mean([pairs.target_lengths[part].sum() for part in plan])
    assert fill > 80  # budgets are used


def test_the_plan_depends_on_seed_and_epoch_alone() -> None:
    pairs = Pairs(500)

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(plan_epoch(pairs.lengths, CONFIG, seed, epoch)).tolist()

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_lengths_are_alike_in_a_micro_batch() -> None:
    pairs = Pairs(5000)
    plan = plan_epoch(pairs.lengths, CONFIG, seed=1, epoch=0)
    spread = np.mean([np.ptp(pairs.target_lengths[part]) for part in plan])
    assert spread < 2


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_each_pair_once_an_epoch_and_the_same_steps_at_every_world_size(world_size: int) -> None:
    pairs = Pairs(900)
    alone = steps(pairs, 0, 1, 60)
    length = next(i for i, step in enumerate(alone) if step.epoch == 1)
    ranks = [steps(pairs, rank, world_size, 60) for rank in range(world_size)]
    for epoch in (0, 1):
        seen = [n for rank in ranks for step in rank if step.epoch == epoch for n in pairs_of(step)]
        if epoch == 0:
            assert sorted(seen) == list(range(900))
    for i in range(length):
        together = [n for rank in ranks for n in pairs_of(rank[i])]
        assert sorted(together) == sorted(pairs_of(alone[i]))
        assert all(rank[i].tokens == alone[i].tokens for rank in ranks)
        assert {rank[i].loss_count for rank in ranks} == {alone[i].tokens["target"]}
        assert len({len(rank[i].batches) for rank in ranks}) == 1
        counted = [
            int(b.labels.numel()) for rank in ranks for b, w in zip(rank[i].batches, rank[i].shares, strict=True) if w
        ]
        assert sum(counted) == alone[i].tokens["target"]


def test_a_micro_batch_has_the_same_seed_on_whichever_rank_it_falls() -> None:
    pairs = Pairs(300)

    def seeds(world_size: int) -> dict[int, int]:
        found = {}
        for rank in range(world_size):
            for step in steps(pairs, rank, world_size, 5):
                for b, weight, seed in zip(step.batches, step.shares, step.seeds, strict=True):
                    if weight:
                        found[int(b.source[0])] = seed
        return found

    assert seeds(1) == seeds(2) == seeds(3)
    assert len(set(seeds(1).values())) == len(seeds(1))


def test_going_on_from_anywhere_equals_never_stopping() -> None:
    pairs = Pairs(300)
    whole = steps(pairs, 0, 2, 40)
    for at in (1, 7, 25):
        rest = steps(pairs, 0, 2, 40 - at, epoch=whole[at].epoch, index=whole[at].index)
        for one, other in zip(whole[at:], rest, strict=True):
            assert (one.epoch, one.index, one.seeds) == (other.epoch, other.index, other.seeds)
            assert pairs_of(one) == pairs_of(other)


def test_a_position_at_the_epochs_end_goes_on_with_the_next() -> None:
    pairs = Pairs(300)
    whole = steps(pairs, 0, 1, 40)
    last = next(i for i, step in enumerate(whole) if step.epoch == 1) - 1
    (after,) = steps(pairs, 0, 1, 1, epoch=0, index=whole[last].index + 1)
    assert pairs_of(after) == pairs_of(whole[last + 1])


def test_a_batch_shifts_each_target_by_itself() -> None:
    pairs = Pairs(10)
    batch = collate_pairs(pairs, [3, 5])
    first, second = pairs.target_lengths[[3, 5]]
    labels, targets = batch.labels.split([first, second]), batch.target[: first + second].split([first, second])
    for label, target, number in zip(labels, targets, (3, 5), strict=True):
        assert label[0] == number + 4 and label[-1] == EOS_ID
        assert target[0] == BOS_ID
        assert torch.equal(target[1:], label[:-1])
    cells = batch.source_layout.token_of_cell.numel() + batch.target_layout.token_of_cell.numel()
    tokens = pairs.source_lengths[[3, 5]].sum() + first + second
    assert batch.padding_share == pytest.approx(1 - tokens / cells)


@pytest.mark.parametrize("chosen", [[3], [3, 5], list(range(64)), list(range(200))])
def test_filler_makes_sizes_repeat_and_says_nothing(chosen: list[int]) -> None:
    pairs = Pairs(200)
    batch = collate_pairs(pairs, chosen)
    sides = (
        (batch.source, batch.source_layout, pairs.source_lengths[chosen], batch.source_tokens),
        (batch.target, batch.target_layout, pairs.target_lengths[chosen], len(batch.labels)),
    )
    for row, layout, lengths, real in sides:
        assert real == lengths.sum()
        assert layout.lengths[: len(chosen)].tolist() == lengths.tolist()
        assert len(row) == layout.lengths.sum() and len(row) % 64 == 0 and len(row) - real < 64 + 80
        assert layout.lengths.min() >= 1 and max(layout.lengths.tolist()[len(chosen) :], default=0) <= lengths.max()
        if len(chosen) >= 32:
            assert len(layout.lengths) % 8 == 0
        else:  # attention's grid has no more rows than the last tokens need
            assert len(layout.lengths) - len(chosen) <= -(-64 // max(2, lengths.max() - 1)) + 1
    assert (batch.source[batch.source_tokens :] == PAD_ID).all()
    assert len(batch.source_layout.lengths) == len(batch.target_layout.lengths)


def test_sentences_of_one_token_can_be_filled() -> None:
    pairs = Pairs(3)
    pairs.source_lengths[:] = pairs.target_lengths[:] = 2
    assert len(collate_pairs(pairs, [0, 1, 2]).source) % 64 == 0


def test_made_ahead_they_are_the_same_steps() -> None:
    pairs = Pairs(300)
    stream = pair_steps(pairs, CONFIG, 7, rank=0, world_size=1)
    for one, other in zip(steps(pairs, 0, 1, 20), ahead(stream, torch.device("cpu")), strict=False):
        assert (one.epoch, one.index, one.seeds, one.tokens["target"]) == (
            other.epoch,
            other.index,
            other.seeds,
            other.tokens["target"],
        )
        assert all(torch.equal(a.source, b.source) for a, b in zip(one.batches, other.batches, strict=True))


def test_a_refusal_while_making_ahead_reaches_the_user() -> None:
    with pytest.raises(UserError, match=r"corpus\.train"):
        next(ahead(pair_steps(Pairs(0), CONFIG, 7, rank=0, world_size=1), torch.device("cpu")))


def test_a_pair_larger_than_the_budget_is_refused_by_key() -> None:
    pairs = Pairs(10)
    pairs.target_lengths[4] = 101
    with pytest.raises(UserError, match=r"batch\.micro_tokens.*101 tokens"):
        steps(pairs, 0, 1, 1)


def test_a_budget_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^tokens:"):
        BatchConfig(tokens=1000, micro_tokens=300)


def test_no_pairs_are_refused() -> None:
    with pytest.raises(UserError, match=r"corpus\.train"):
        steps(Pairs(0), 0, 1, 1)
