"""Pairs of another corpus, of which every epoch of train has a share: drawn by (seed, epoch) alone."""

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


def drawn_rows(total: int, count: int, seed: int, epoch: int) -> np.ndarray:
    """(count,) rows below `total`, a pure function of the arguments. None is drawn again before all were drawn."""
    random = np.random.default_rng([seed, epoch, _DRAW])
    rounds = [random.permutation(total) for _ in range(-(-count // total))]
    return np.concatenate([*rounds, np.empty(0, np.int64)])[:count].astype(np.int64)
