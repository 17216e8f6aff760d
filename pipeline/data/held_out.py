"""The pairs of a split, and those of train that are held out for validation and test."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from transloom.pipeline.data.corpus import read_own, source_tags, split_portions, tagged, text_files
from transloom.pipeline.data.corpus_config import CorpusConfig, CorpusKind
from transloom.pipeline.data.overlap import Sides, pair_hash
from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.data.portions import Portion, Unreadable, map_portions, portion_pairs, refuse
from transloom.pipeline.errors import UserError
from transloom.pipeline.progress import MapTasks


def read_pairs(
    config: CorpusConfig,
    split: str,
    unreadable: Unreadable = refuse,
    held_out: dict[str, list[SentencePair]] | None = None,
) -> Iterator[SentencePair]:
    """Streams the pairs of "train", "validation" or "test", in the corpus's order, texts unchanged.

    Args:
        unreadable: called with (reason, message) for a pair that is not text: invalid_utf8, nul, too_long (over
            MAX_LINE_BYTES). When it returns, the pair is left out.
        held_out: the result of `held_out_pairs`, if known already, which saves a pass over the training data.

    Raises:
        UserError: a file is missing, the sides have unequal line counts, a data set or column can't be found, or
            from `unreadable`.
    """
    if held_out is None:
        held_out = held_out_pairs(config, unreadable)
    if split in held_out:
        yield from held_out[split]
        return
    taken = Sides(pair for pairs in held_out.values() for pair in pairs)
    yield from (pair for _, pair in read_own(config, split, unreadable) if split != "train" or not taken.share(pair))


@dataclass(frozen=True)
class HeldOut:
    """Pairs of train that are held out.

    Attributes:
        pairs: by split.
        rows: the places of these pairs: of each portion of train, by its number, the numbers of the rows.
    """

    pairs: dict[str, list[SentencePair]]
    rows: dict[int, frozenset[int]]


def held_out_pairs(config: CorpusConfig, unreadable: Unreadable = refuse) -> dict[str, list[SentencePair]]:
    """The pairs of `hold_out`."""
    return hold_out(config, unreadable).pairs


def hold_out(config: CorpusConfig, unreadable: Unreadable = refuse, map_tasks: MapTasks = map) -> HeldOut:
    """Chooses pairs of train for validation or test, where these have no data of their own.

    The pairs with the smallest hashes are held out, so the choice does not depend on the corpus's order. No two of them
    share a sentence. So at least half of the different pairs are left when all pairs that share a sentence with them
    are taken out of train.

    Raises:
        UserError: too few pairs of train share no sentence.
    """
    lacking = [split for split in ("validation", "test") if not config.has_own_data(split)]
    if not lacking:
        return HeldOut({}, {})
    wanted = config.held_out * len(lacking)
    for size in (4 * wanted, 16 * wanted, 64 * wanted):  # larger only if many pairs share sentences
        candidates, usable = _smallest_hashes(config, size, unreadable, map_tasks)
        apart: list[_Candidate] = []
        sides = Sides()
        for candidate in candidates:
            if not sides.share(candidate.pair):
                sides.add(candidate.pair)
                apart.append(candidate)
        if len(apart) >= 2 * wanted:
            rows: dict[int, set[int]] = {}
            for candidate in apart[:wanted]:
                rows.setdefault(candidate.portion, set()).add(candidate.row)
            tags = source_tags(config, "train")
            pairs = [tagged(candidate.pair, tags, candidate.source) for candidate in apart]
            return HeldOut(
                {split: pairs[i * config.held_out : (i + 1) * config.held_out] for i, split in enumerate(lacking)},
                {portion: frozenset(numbers) for portion, numbers in rows.items()},
            )
        if len(candidates) < size:
            break
    if not usable:
        raise UserError(f"corpus {config.name}: train has no pair that is not empty. Look at {_where(config)}.")
    most = len(apart) // (2 * len(lacking))
    raise UserError(
        f"corpus {config.name}: train has {usable:,} pairs that are not empty. Of {len(candidates):,} different ones "
        f"{len(apart):,} share no sentence with each other, and at most half of these can be held out: too few for "
        f"corpus.held_out={config.held_out} each for {' and '.join(lacking)}. "
        f"{f'Set corpus.held_out={most} or lower, or give' if most else 'Give'} corpus.validation and corpus.test "
        "files."
    )


def _where(config: CorpusConfig) -> str:
    """The files of train, or the data set."""
    if config.reads_text:
        return " and ".join(map(str, text_files(config, "train")))
    if config.kind is CorpusKind.sources:
        return "corpus.train"
    return config.data_files.get(config.train.split or "", config.dataset or config.name)


class _Candidate(NamedTuple):
    """A pair that may be held out, and the place where it stands first."""

    digest: int
    portion: int
    row: int
    source: int
    pair: SentencePair


def _smallest_hashes(
    config: CorpusConfig, size: int, unreadable: Unreadable, map_tasks: MapTasks
) -> tuple[list[_Candidate], int]:
    """The `size` different pairs of train with the smallest hashes, in the hashes' order, and the number of pairs that
    are not empty."""
    chosen: list[_Candidate] = []
    usable = 0
    tasks = (_CandidatesTask(portion, size, unreadable) for portion in split_portions(config, "train"))
    for number, (candidates, count) in enumerate(map_portions(_smallest_of_portion, tasks, map_tasks)):
        usable += count
        chosen += [candidate._replace(portion=number) for candidate in candidates]
        chosen.sort()
        chosen = [one for i, one in enumerate(chosen) if i == 0 or chosen[i - 1].digest != one.digest][:size]
    return chosen, usable


@dataclass(frozen=True)
class _CandidatesTask:
    """The arguments of `_smallest_hashes`, for one portion."""

    portion: Portion
    size: int
    unreadable: Unreadable


def _smallest_of_portion(task: _CandidatesTask) -> tuple[list[_Candidate], int]:
    """As `_smallest_hashes`, of one portion, whose number is still 0."""
    portion, size = task.portion, task.size
    chosen: dict[int, _Candidate] = {}
    largest: list[int] = []  # a heap of the chosen hashes, negated: the largest one first
    usable = 0
    for number, _, pair in portion_pairs(portion, task.unreadable):
        if not pair.source.strip() or not pair.target.strip():
            continue
        usable += 1
        digest = pair_hash(pair)
        if digest in chosen or (len(chosen) == size and digest > -largest[0]):
            continue
        chosen[digest] = _Candidate(digest, 0, number, portion.source, pair)
        heapq.heappush(largest, -digest)
        if len(chosen) > size:
            del chosen[-heapq.heappop(largest)]
    return [chosen[digest] for digest in sorted(chosen)], usable
