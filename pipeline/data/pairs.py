"""The unit of a corpus: a sentence and its translation."""

from typing import NamedTuple


class SentencePair(NamedTuple):
    """One sentence in the source language and its translation, as text."""

    source: str
    target: str


def collapse_whitespace(text: str) -> str:
    """Strips whitespace at both ends and makes each run of ASCII whitespace one space.

    Other spaces inside stay as they are: a no-break space belongs to French punctuation.
    """
    # bytes.split() knows ASCII whitespace only, str.split() would take the others too.
    return b" ".join(text.strip().encode().split()).decode()
