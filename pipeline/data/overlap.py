"""Finds sentences in two splits: a score on sentences that a model has memorised says nothing about its quality."""

import hashlib
from collections.abc import Iterable

from pipeline.data.pairs import SentencePair


def spaces_alike(text: str) -> str:
    """The text with one space for each run of Unicode white space, such as a no-break space; for comparisons."""
    return " ".join(text.split())


def pair_hash(pair: SentencePair) -> int:
    """A hash of 96 bits, equal for pairs that differ in whitespace alone."""
    text = "\n".join(map(spaces_alike, pair))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=12).digest())


class Sides:
    """The sentences of some pairs as hashes, a set for each side: about 100 bytes of memory a sentence."""

    def __init__(self, pairs: Iterable[SentencePair] = ()) -> None:
        self._hashes: tuple[set[bytes], set[bytes]] = (set(), set())
        for pair in pairs:
            self.add(pair)

    def add(self, pair: SentencePair) -> None:
        """Adds both sentences, but no empty sentence."""
        for hashes, text in zip(self._hashes, pair, strict=True):
            if text := spaces_alike(text):
                hashes.add(_hash(text))

    def share(self, pair: SentencePair) -> bool:
        """Whether the pair's source is among the sources, or its target among the targets; whitespace aside."""
        if not any(self._hashes):
            return False
        return any(_hash(spaces_alike(text)) in hashes for hashes, text in zip(self._hashes, pair, strict=True))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
