"""Filters training pairs. Validation and test pairs are never filtered.

The rules here look at one pair alone; `duplicates.py` compares the pairs with each other.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cache

import regex

from transloom.pipeline.data.languages import language_identifier
from transloom.pipeline.data.lines import MAX_LINE_BYTES
from transloom.pipeline.data.overlap import Sides, SimilarSentences
from transloom.pipeline.data.pairs import SentencePair
from transloom.pipeline.data.scripts import script_share, scripts_of
from transloom.pipeline.data.words import collapse_whitespace, count_collapsed_words

# The settings of CleanConfig that each rule uses.
RULES = {
    "untranslated": (),
    "empty": (),
    "too_long": ("max_words", "max_bytes"),
    "length_ratio": ("max_ratio",),
    "control": ("drop_control",),
    "identical": ("drop_identical",),
    "wrong_script": ("min_script",),
    "wrong_language": ("identify_language",),
    "contaminated": ("decontaminate",),
    "near_test": ("near_test",),
    "duplicate": ("drop_duplicates",),
    "near_duplicate": ("drop_near_duplicates",),
    "invalid_utf8": ("invalid",),
    "nul": ("invalid",),
    "nfc": ("nfc",),
}
SHOWN = 60  # characters of a sentence in an example
EXAMPLES = 3  # of each rule
LEAST_WORDS_TO_IDENTIFY = 4  # the language of fewer words is a guess

_CONTROL = regex.compile(r"\p{Cc}")


class Invalid(Enum):
    """The handling of lines that are not text (invalid UTF-8, NUL bytes)."""

    error = "error"
    drop = "drop"


@dataclass(frozen=True)
class CleanConfig:
    """Limits for training pairs.

    Words are those of `count_words`, for scripts with and without spaces.

    Attributes:
        max_words: of either side.
        max_bytes: of either side.
        max_ratio: of the longer side's words to the shorter side's.
        drop_duplicates: whether each pair is kept once, the first over all sources; hashes go to the disk, so memory
            does not grow with the corpus.
        drop_near_duplicates: whether of pairs that differ in case, digits, punctuation, accents or spaces alone the
            first is kept.
        invalid: whether a line that is no text (invalid UTF-8, NUL bytes) is an error, or its pair is left out.
        decontaminate: whether pairs are left out that have a sentence of validation or test, on the same side.
        near_test: pairs with a sentence this similar to one of validation or test are left out: the share of word
            pairs in common, from 0 to 1; 0: off.
        nfc: whether accents and letters are written as one character (Unicode's NFC); changed pairs are counted.
        drop_control: whether pairs with control characters are left out.
        drop_identical: whether pairs with equal sides are left out.
        min_script: the least share of a sentence's letters in its language's script, such as 0.5; 0: any script.
        identify_language: whether pairs are left out of which a side, of at least four words, is in
            another language by py3langid.

    Raises:
        ValueError: if a limit can't be met, naming the field.
    """

    max_words: int = 250
    max_bytes: int = 10_000
    max_ratio: float = 9.0
    drop_duplicates: bool = False
    invalid: Invalid = Invalid.error
    decontaminate: bool = True
    drop_near_duplicates: bool = False
    near_test: float = 0.0
    nfc: bool = False
    drop_control: bool = False
    drop_identical: bool = False
    min_script: float = 0.0
    identify_language: bool = False

    def __post_init__(self) -> None:
        if self.max_words < 1:
            raise ValueError(f"max_words: must be at least 1, not {self.max_words}")
        if not 1 <= self.max_bytes <= MAX_LINE_BYTES:
            raise ValueError(f"max_bytes: must be from 1 to {MAX_LINE_BYTES}, not {self.max_bytes}")
        if not self.max_ratio >= 1.0:
            raise ValueError(f"max_ratio: must be at least 1.0, not {self.max_ratio}")
        for name in ("near_test", "min_script"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: must be from 0 to 1, not {getattr(self, name)}")


@dataclass
class CleanReport:
    """Counts of the training pairs that were read.

    Attributes:
        kept: pairs for training.
        held_out: pairs held out for validation and test.
        dropped: pairs left out, by rule.
        changed: pairs that were kept and changed, by rule.
        contaminated: pairs with a sentence that is in validation or test, left out or kept.
        examples: the first EXAMPLES pairs that each rule left out or changed: place, fault, and the beginnings of both
            sentences.
        equal: kept pairs with equal sides.
        source_words, target_words: of the kept pairs.
    """

    kept: int = 0
    held_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    contaminated: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)
    equal: int = 0
    source_words: int = 0
    target_words: int = 0

    @property
    def read(self) -> int:
        return self.kept + self.held_out + self.dropped.total()

    def drop(self, rule: str, example: str) -> None:
        self.dropped[rule] += 1
        self.note(rule, example)

    def note(self, rule: str, example: str) -> None:
        """Keeps the example if it is one of the rule's first."""
        examples = self.examples.setdefault(rule, [])
        if len(examples) < EXAMPLES:
            examples.append(example)

    def add(self, other: "CleanReport") -> None:
        """Adds the counts of the pairs that come next."""
        for name in ("kept", "held_out", "contaminated", "equal", "source_words", "target_words"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.dropped.update(other.dropped)
        self.changed.update(other.changed)
        for rule, examples in other.examples.items():
            for example in examples:
                self.note(rule, example)


class Evaluation:
    """The sentences of validation and test, as the rules compare training pairs with them.

    Args:
        pairs: of validation and test that have data of their own. held_out: pairs of train that are held out for them.
    """

    def __init__(
        self, config: CleanConfig, pairs: Iterable[SentencePair] = (), held_out: Iterable[SentencePair] = ()
    ) -> None:
        self.sides, self.held_out = Sides(), Sides()
        self.similar = SimilarSentences(config.near_test) if config.near_test else None
        for is_held_out, group in ((False, pairs), (True, held_out)):
            for pair in group:
                for form in {pair, _normalised(pair)} if config.nfc else (pair,):
                    self.sides.add(form)
                    if is_held_out:
                        self.held_out.add(form)
                    if self.similar:
                        self.similar.add(form)


def clean_pairs(
    rows: Iterable[tuple[int, str, SentencePair]],
    config: CleanConfig,
    report: CleanReport,
    evaluation: Evaluation | None = None,
    held_out: frozenset[int] = frozenset(),
    languages: tuple[str, str] = ("", ""),
) -> Iterator[tuple[int, SentencePair]]:
    """Yields (number, pair) of the pairs that are fit for training, whitespace collapsed; counts all pairs in `report`.

    Args:
        rows: (number, place, pair), the place as shown in an example: "line 7".
        evaluation: the sentences of validation and test. Whatever `config` says, all pairs that share a sentence with
            held-out pairs are left out.
        held_out: the numbers of the rows that are held out for validation or test.
        languages: of source and target.
    """
    for number, place, pair in rows:
        if number in held_out:
            report.held_out += 1
            continue
        clean = SentencePair(collapse_whitespace(pair.source), collapse_whitespace(pair.target))
        if is_changed := config.nfc and not all(unicodedata.is_normalized("NFC", text) for text in clean):
            clean = _normalised(clean)
        words = (count_collapsed_words(clean.source), count_collapsed_words(clean.target))
        rule, reason = _fault(clean, words, config, languages)
        if rule is None and evaluation and evaluation.sides.share(clean):
            report.contaminated += 1
            if config.decontaminate or evaluation.held_out.share(clean):
                rule, reason = "contaminated", "a side stands in validation or test"
        if rule is None and evaluation and evaluation.similar and (near := evaluation.similar.find(clean)):
            rule, reason = "near_test", f"near {shortened(near)!r} of validation or test"
        if rule is not None:
            report.drop(rule, example(place, reason, clean))
            continue
        if is_changed:
            report.changed["nfc"] += 1
            report.note("nfc", example(place, "normalised", clean))
        report.kept += 1
        report.source_words += words[0]
        report.target_words += words[1]
        report.equal += clean.source == clean.target
        yield number, clean


def example(place: str, reason: str, pair: SentencePair) -> str:
    """A pair that a rule left out or changed, in a line."""
    return f"{place}, {reason}: {shortened(pair.source)} | {shortened(pair.target)}"


def _normalised(pair: SentencePair) -> SentencePair:
    return SentencePair(*(unicodedata.normalize("NFC", text) for text in pair))


def shortened(text: str) -> str:
    """The beginning of a text, without characters that would move a terminal's cursor."""
    text = text[:SHOWN] + "…" if len(text) > SHOWN else text
    return "".join(character if character.isprintable() else " " for character in text)


def _fault(
    pair: SentencePair, words: tuple[int, int], config: CleanConfig, languages: tuple[str, str]
) -> tuple[str | None, str]:
    """The rule that a pair breaks (None: no rule), and the fault in words."""
    source, target = pair
    if not source or not target:
        empty = [side for side, text in (("source", source), ("target", target)) if not text]
        return "empty", f"empty {' and '.join(empty)}"
    # Characters first: their number needs no encoding, and is never above the number of bytes.
    if 4 * max(len(source), len(target)) > config.max_bytes:
        num_bytes = max(len(source.encode()), len(target.encode()))
        if num_bytes > config.max_bytes:
            return "too_long", f"{num_bytes:,} bytes"
    fewer, more = sorted(words)
    if more > config.max_words:
        return "too_long", f"{more:,} words"
    if more > config.max_ratio * fewer:
        return "length_ratio", f"{words[0]:,} to {words[1]:,} words"
    if config.drop_control and (control := _CONTROL.search(source) or _CONTROL.search(target)):
        return "control", f"the control character U+{ord(control[0]):04X}"
    if config.drop_identical and source == target:
        return "identical", "equal sides"
    if config.min_script:
        for side, text, language in zip(("source", "target"), (source, target), languages, strict=True):
            if (share := script_share(text, _scripts(language))) < config.min_script:
                return "wrong_script", f"{share:.0%} of the {side}'s letters are {'/'.join(_scripts(language))}"
    if config.identify_language:
        for side, text, language, count in zip(("source", "target"), (source, target), languages, words, strict=True):
            if count >= LEAST_WORDS_TO_IDENTIFY and (other := language_identifier()(text)) != _base(language):
                return "wrong_language", f"the {side} is {other}"
    return None, ""


@cache
def _scripts(language: str) -> tuple[str, ...]:
    return scripts_of(language)


@cache
def _base(language: str) -> str:
    return language.replace("_", "-").partition("-")[0].lower()
