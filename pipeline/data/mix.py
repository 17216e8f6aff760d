"""The examples of an epoch: sources of train by their weights, and a share of another corpus; drawn by (seed, epoch)
alone.

A source of n examples with the weight w is drawn w n times an epoch: with 1, each example once; with 2, each twice;
with 0.5, another half in each epoch. With a temperature T the numbers are in proportion to w n^(1/T), and together as
many as without it: the larger T, the more even the sources.
"""

from collections.abc import Sequence

import numpy as np

from transloom.pipeline.tasks.task import Examples

MIX = "mix"  # the split's name in a prepared corpus
_DRAW = 0x6D6978  # keeps the draw apart from other uses of (seed, epoch)


class MixedPairs:
    """The examples of train, behind them drawn rows of the other corpus: `Examples`."""

    def __init__(self, train: Examples, other: Examples, rows: np.ndarray) -> None:
        self.columns = train.columns
        self.lengths = np.concatenate([train.lengths, other.lengths[rows]])
        self._train, self._other, self._rows = train, other, rows

    def __len__(self) -> int:
        return len(self.lengths)

    def get(self, column: str, row: int) -> np.ndarray:
        """(length,) token ids."""
        behind = row - len(self._train)
        return self._train.get(column, row) if behind < 0 else self._other.get(column, int(self._rows[behind]))


def mixed(train: Examples, other: Examples, share: float, seed: int, epoch: int) -> MixedPairs:
    """The examples of an epoch, of which `share` are of the other corpus."""
    return MixedPairs(train, other, drawn_rows(len(other), mixed_count(len(train), share), seed, epoch))


def mixed_count(train: int, share: float) -> int:
    """How many examples beside those of train make up `share` of all."""
    return round(train * share / (1.0 - share))


class DrawnExamples:
    """Rows of other examples, in any order and number: `Examples`."""

    def __init__(self, examples: Examples, rows: np.ndarray) -> None:
        self.columns = examples.columns
        self.lengths = examples.lengths[rows]
        self._examples, self._rows = examples, rows

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, column: str, row: int) -> np.ndarray:
        """(length,) token ids."""
        return self._examples.get(column, int(self._rows[row]))


def draw_counts(sizes: Sequence[int], weights: Sequence[float], temperature: float = 1.0) -> list[int]:
    """How many examples of each source an epoch draws.

    Args:
        sizes: the number of examples of each source.
    """
    plain = np.array(weights, float) * np.array(sizes, float)
    shares = np.where(
        plain > 0, np.array(weights) * np.maximum(np.array(sizes, float), 1.0) ** (1.0 / temperature), 0.0
    )
    return [round(float(count)) for count in shares * (plain.sum() / shares.sum() if plain.sum() else 0.0)]


def drawn(
    train: Examples, sizes: Sequence[int], weights: Sequence[float], temperature: float, seed: int, epoch: int
) -> Examples:
    """The examples of an epoch, drawn by the sources' weights.

    Args:
        train: the examples of the sources, one source after another. sizes: as of `draw_counts`.
    """
    counts = draw_counts(sizes, weights, temperature)
    if counts == list(sizes):
        return train
    starts = np.cumsum([0, *sizes[:-1]])
    rows = [
        start + drawn_rows(size, count, seed, epoch, source)
        for source, (start, size, count) in enumerate(zip(starts, sizes, counts, strict=True), 1)
        if count
    ]
    return DrawnExamples(train, np.concatenate(rows))


def drawn_rows(total: int, count: int, seed: int, epoch: int, source: int = 0) -> np.ndarray:
    """(count,) rows below `total`, a pure function of the arguments. None is drawn again before all were drawn."""
    random = np.random.default_rng([seed, epoch, _DRAW] + [source] * bool(source))
    rounds = [random.permutation(total) for _ in range(-(-count // total))]
    return np.concatenate([*rounds, np.empty(0, np.int64)])[:count].astype(np.int64)
