"""Which words of a sentence pair belong together, from the pairs alone: model 1 of Brown et al. 1993, by expectation
maximisation. Known without any attention, so that attention can be compared with it."""

from collections.abc import Sequence

import numpy as np

ITERATIONS = 5


class LexicalAligner:
    """The probability t(target token | source token) of each two tokens that stand in one pair."""

    def __init__(self, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> None:
        """
        Args:
            sources, targets: (tokens,) ids of each pair's sides.
        """
        self._size = 1 + max(int(ids.max()) for ids in targets)
        keys, places, first = [], [], 0
        for source, target in zip(sources, targets, strict=True):
            keys.append(self._keys(source, target).ravel())
            places.append(np.tile(np.arange(first, first + len(target)), len(source)))
            first += len(target)
        place = np.concatenate(places)  # the target token that a source token may explain
        self._known, entry = np.unique(np.concatenate(keys), return_inverse=True)
        self._probability = np.ones(len(self._known))
        of_source = self._known // self._size
        for _ in range(ITERATIONS):
            share = self._probability[entry]
            share /= np.bincount(place, share)[place]
            counts = np.bincount(entry, share)
            self._probability = counts / np.bincount(of_source, counts)[of_source]

    def _keys(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        return source.astype(np.int64)[:, None] * self._size + target.astype(np.int64)

    def align(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """(T,) the place of the likeliest source token of each target token, of equally likely ones the first; -1 for a
        target token that stood in no pair with any of them."""
        keys = self._keys(source, target)
        entry = np.minimum(np.searchsorted(self._known, keys), len(self._known) - 1)
        is_known = (self._known[entry] == keys) & (target < self._size)
        likeliest = np.where(is_known, self._probability[entry], 0.0).argmax(axis=0)
        return np.where(is_known.any(axis=0), likeliest, -1)
