"""Which training pairs are fit to learn from. Validation and test pairs are never filtered."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from pipeline.data.lines import MAX_LINE_BYTES
from pipeline.data.pairs import SentencePair


class Invalid(Enum):
    """What to do about lines that are not text (invalid UTF-8, NUL bytes)."""

    error = "error"
    drop = "drop"


@dataclass(frozen=True)
class CleanConfig:
    """Limits for training pairs.

    Words are what whitespace separates; for a language written without spaces set `max_ratio` high.
    `drop_duplicates` remembers a hash for each pair, about 100 bytes of memory.

    Raises:
        ValueError: if a limit can't be met, naming the field.
    """

    max_words: int = 250
    max_bytes: int = 10_000
    max_ratio: float = 9.0
    drop_duplicates: bool = False
    invalid: Invalid = Invalid.error

    def __post_init__(self) -> None:
        if self.max_words < 1:
            raise ValueError(f"max_words: must be at least 1, not {self.max_words}")
        if not 1 <= self.max_bytes <= MAX_LINE_BYTES:
            raise ValueError(f"max_bytes: must be from 1 to {MAX_LINE_BYTES}, not {self.max_bytes}")
        if not self.max_ratio >= 1.0:
            raise ValueError(f"max_ratio: must be at least 1.0, not {self.max_ratio}")


@dataclass
class CleanReport:
    """How many pairs were kept, and how many dropped for which reason."""

    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def collapse_whitespace(text: str) -> str:
    """Strips whitespace at both ends and makes each run of ASCII whitespace one space.

    Other spaces inside stay as they are: a no-break space belongs to French punctuation.
    """
    # bytes.split() knows ASCII whitespace only, str.split() would take the others too.
    return b" ".join(text.strip().encode().split()).decode()


def clean_pairs(pairs: Iterable[SentencePair], config: CleanConfig, report: CleanReport) -> Iterator[SentencePair]:
    """Yields the pairs that are fit for training, whitespace collapsed; counts all of them in `report`."""
    seen: set[bytes] = set()
    for pair in pairs:
        clean = SentencePair(collapse_whitespace(pair.source), collapse_whitespace(pair.target))
        reason = _fault(clean, config)
        if reason is None and config.drop_duplicates:
            digest = hashlib.blake2b("\n".join(clean).encode(), digest_size=16).digest()
            reason = "duplicate" if digest in seen else None
            seen.add(digest)
        if reason is None:
            report.kept += 1
            yield clean
        else:
            report.dropped[reason] += 1


def _fault(pair: SentencePair, config: CleanConfig) -> str | None:
    if not pair.source or not pair.target:
        return "empty"
    # Characters first: they never outnumber the bytes, and are known without encoding.
    if max(map(len, pair)) > config.max_bytes or max(len(text.encode()) for text in pair) > config.max_bytes:
        return "too_long"
    source_words, target_words = (len(text.encode().split()) for text in pair)
    if max(source_words, target_words) > config.max_words:
        return "too_long"
    if max(source_words, target_words) > config.max_ratio * min(source_words, target_words):
        return "length_ratio"
    return None
