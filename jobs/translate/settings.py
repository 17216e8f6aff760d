"""The words of `transloom translate` → what is read, how it is translated, and what is written."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path

from transloom.jobs.cli import parse_settings
from transloom.pipeline.data.lines import unpacked_name
from transloom.pipeline.data.terminology import Terminology
from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.generate.line_files import Format, LineSettings
from transloom.pipeline.generate.sample import SampleConfig
from transloom.pipeline.generate.translator import Split, TranslateConfig

MARKUP = (".tmx", ".xlf", ".xliff")
SAMPLING = ("temperature", "top_k", "top_p", "samples")  # each of them turns sampling on


class Switch(Enum):
    on = "true"
    off = "false"


@dataclass(frozen=True)
class Words:
    """The command's own words; None or empty: not given. See `Command` for their meanings.

    Raises:
        ValueError: naming the word.
    """

    n_best: int = 1
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    samples: int | None = None
    seed: int | None = None
    align: Switch = Switch.off
    split: Split = Split.long
    format: Format = Format.text
    prefix: str = ""
    column: str = ""
    prefix_column: str = ""
    terms: str = ""
    source_language: str = ""
    target_language: str = ""
    output: str = ""
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers: must be at least 1, not {self.workers}")
        if self.prefix_column and not self.column:
            raise ValueError("prefix_column: is of a table; say with column= which column is to be translated")
        if self.prefix_column and self.prefix:
            raise ValueError("prefix: every line has its own with prefix_column=; leave one of them out")
        for name in ("column", "prefix_column"):
            if getattr(self, name) == "0":
                raise ValueError(f"{name}: columns are counted from 1")
        if self.prefix_column and self.prefix_column.isdigit() != self.column.isdigit():
            raise ValueError("prefix_column: name both columns, or give both by their numbers")

    @property
    def has_header(self) -> bool:
        """Whether the table's first line has its columns' names."""
        return bool(self.column) and not self.column.isdigit()


WORDS = tuple(field.name for field in fields(Words))


def parse_words(own: Mapping[str, str]) -> Words:
    """
    Raises:
        UserError: a word's value can't be read or is refused, naming the word.
    """
    return parse_settings(Words, own)


def is_markup(file: str) -> bool:
    """Whether the file is of a translation tool's kind, by its name."""
    return Path(unpacked_name(file)).suffix.lower() in MARKUP


def line_settings(words: Words, search: BeamConfig) -> LineSettings:
    """The settings of the words; columns that are given by name stay open.

    Raises:
        UserError: words contradict each other, or the file of terms is missing or wrong.
    """
    sampling = _sampling(words)
    count = sampling.samples if sampling else words.n_best
    name = "samples" if sampling else "n_best"
    if count > 1 and words.format is Format.text:
        raise UserError(f"{name}: {count} translations of a line need format=jsonl; text has a line for a line")
    if words.n_best > search.beam and not sampling:
        raise UserError(f"n_best: {words.n_best} hypotheses need decode.beam={words.n_best}, not {search.beam}")
    if sampling and words.terms:
        raise UserError("terms: are of the search; leave out what turns sampling on, or terms")
    try:
        config = TranslateConfig(words.n_best, sampling, words.align is Switch.on, words.split)
    except ValueError as error:
        raise UserError(str(error)) from None
    column = int(words.column) if words.column and not words.has_header else None
    prefix_column = int(words.prefix_column) if words.prefix_column and not words.has_header else None
    terms = Terminology.read(Path(words.terms)) if words.terms else None
    return LineSettings(search, config, words.format, column, words.prefix, prefix_column, terms)


def _sampling(words: Words) -> SampleConfig | None:
    given = {name: getattr(words, name) for name in (*SAMPLING, "seed") if getattr(words, name) is not None}
    if not set(given) & set(SAMPLING):
        if "seed" in given:
            raise UserError("seed: is of sampling; add temperature=, top_k=, top_p= or samples=")
        return None
    try:
        return SampleConfig(**given)
    except ValueError as error:
        raise UserError(str(error)) from None
