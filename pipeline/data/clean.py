"""Filters training pairs. Validation and test pairs are never filtered."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from transloom.pipeline.data.lines import MAX_LINE_BYTES
from transloom.pipeline.data.overlap import Sides, pair_hash
from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.data.words import collapse_whitespace, count_words

# The settings of CleanConfig that each rule uses.
RULES = {
    "empty": (),
    "too_long": ("max_words", "max_bytes"),
    "length_ratio": ("max_ratio",),
    "contaminated": ("decontaminate",),
    "duplicate": ("drop_duplicates",),
    "invalid_utf8": ("invalid",),
    "nul": ("invalid",),
}
SHOWN = 60  # characters of a sentence in an example


class Invalid(Enum):
    """The handling of lines that are not text (invalid UTF-8, NUL bytes)."""

    error = "error"
    drop = "drop"


@dataclass(frozen=True)
class CleanConfig:
    """Limits for training pairs.

    Attributes:
        max_words: of either side; words are those of `count_words`, for scripts with and without spaces.
        max_bytes: of either side.
        max_ratio: of the longer side's words to the shorter side's.
        drop_duplicates: whether each pair is kept once; takes about 100 bytes of memory a pair.
        invalid: whether a line that is no text (invalid UTF-8, NUL bytes) is an error, or its pair is left out.
        decontaminate: whether pairs are left out that have a sentence of validation or test, on the same side.

    Raises:
        ValueError: if a limit can't be met, naming the field.
    """

    max_words: int = 250
    max_bytes: int = 10_000
    max_ratio: float = 9.0
    drop_duplicates: bool = False
    invalid: Invalid = Invalid.error
    decontaminate: bool = True

    def __post_init__(self) -> None:
        if self.max_words < 1:
            raise ValueError(f"max_words: must be at least 1, not {self.max_words}")
        if not 1 <= self.max_bytes <= MAX_LINE_BYTES:
            raise ValueError(f"max_bytes: must be from 1 to {MAX_LINE_BYTES}, not {self.max_bytes}")
        if not self.max_ratio >= 1.0:
            raise ValueError(f"max_ratio: must be at least 1.0, not {self.max_ratio}")


@dataclass
class CleanReport:
    """Counts of the training pairs that were read.

    Attributes:
        kept: pairs for training.
        held_out: pairs held out for validation and test.
        dropped: pairs left out, by rule.
        contaminated: pairs with a sentence that is in validation or test, left out or kept.
        examples: the first pair that each rule left out: place, fault, and the beginnings of both sentences.
    """

    kept: int = 0
    held_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    contaminated: int = 0
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def read(self) -> int:
        return self.kept + self.held_out + self.dropped.total()

    def drop(self, rule: str, example: str) -> None:
        self.dropped[rule] += 1
        self.examples.setdefault(rule, example)


def clean_pairs(
    rows: Iterable[tuple[str, SentencePair]],
    config: CleanConfig,
    report: CleanReport,
    evaluation: Sides | None = None,
    held_out: Iterable[SentencePair] = (),
) -> Iterator[SentencePair]:
    """Yields the pairs that are fit for training, whitespace collapsed; counts all pairs in `report`.

    Args:
        rows: (place, pair), the place as shown in an example: "line 7".
        evaluation: the sentences of validation and test, `held_out` included.
        held_out: pairs among `rows` that are held out for validation or test. These pairs and, whatever `config` says,
            all pairs that share a sentence with them are left out.
    """
    seen: set[bytes] = set()
    held_out = list(held_out)
    held_sides, to_take = Sides(held_out), set(map(pair_hash, held_out))
    for place, pair in rows:
        clean = SentencePair(collapse_whitespace(pair.source), collapse_whitespace(pair.target))
        if to_take and (taken := pair_hash(clean)) in to_take:
            to_take.remove(taken)
            report.held_out += 1
            continue
        rule, reason = _fault(clean, config)
        if rule is None and evaluation and evaluation.share(clean):
            report.contaminated += 1
            if config.decontaminate or held_sides.share(clean):
                rule, reason = "contaminated", "a side stands in validation or test"
        if rule is None and config.drop_duplicates:
            digest = hashlib.blake2b("\n".join(clean).encode(), digest_size=16).digest()
            if digest in seen:
                rule, reason = "duplicate", "seen before"
            seen.add(digest)
        if rule is None:
            report.kept += 1
            yield clean
        else:
            report.drop(rule, f"{place}, {reason}: {shortened(clean.source)} | {shortened(clean.target)}")


def shortened(text: str) -> str:
    """The beginning of a text, without characters that would move a terminal's cursor."""
    text = text[:SHOWN] + "…" if len(text) > SHOWN else text
    return "".join(character if character.isprintable() else " " for character in text)


def _fault(pair: SentencePair, config: CleanConfig) -> tuple[str | None, str]:
    """The rule that a pair breaks (None: no rule), and the fault in words."""
    if not pair.source or not pair.target:
        return "empty", f"empty {' and '.join(side for side in pair._fields if not getattr(pair, side))}"
    # Characters first: their number needs no encoding, and is never above the number of bytes.
    if max(map(len, pair)) > config.max_bytes or max(len(text.encode()) for text in pair) > config.max_bytes:
        return "too_long", f"{max(len(text.encode()) for text in pair):,} bytes"
    source_words, target_words = map(count_words, pair)
    if max(source_words, target_words) > config.max_words:
        return "too_long", f"{max(source_words, target_words):,} words"
    if max(source_words, target_words) > config.max_ratio * min(source_words, target_words):
        return "length_ratio", f"{source_words:,} to {target_words:,} words"
    return None, ""
