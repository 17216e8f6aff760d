"""The unit of a corpus: a sentence and its translation."""

from typing import NamedTuple


class SentencePair(NamedTuple):
    """One sentence in the source language and its translation, as text."""

    source: str
    target: str
