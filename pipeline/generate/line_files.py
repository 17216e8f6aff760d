"""Lines of a text or of a table → lines with their translations: what a command writes, and what a task of many writes
of its piece."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from transloom.pipeline.data.json_lines import json_line
from transloom.pipeline.data.lines import MAX_LINE_BYTES
from transloom.pipeline.data.terminology import Terminology
from transloom.pipeline.errors import UserError
from transloom.pipeline.generate.align import pharaoh
from transloom.pipeline.generate.beam import BeamConfig
from transloom.pipeline.generate.decoding import OnDone
from transloom.pipeline.generate.translator import TranslateConfig, Translation, Translator

TRANSLATION, ALIGNMENT = "translation", "alignment"  # the columns that are added to a table with names


class Format(Enum):
    """Of the output: the input's own, or an object a line."""

    text = "text"
    jsonl = "jsonl"


@dataclass(frozen=True)
class LineSettings:
    """What is read of a line, how it is translated, and what is written.

    Attributes:
        column: the column of a tab-separated table to translate, from 1; None: lines of text.
        prefix: that every translation begins with; prefix_column: the column that has the line's own.
        num_columns: of the table's first line. Shorter lines are filled up, so that what is added has columns of its
            own; None: whatever a line has.
    """

    search: BeamConfig = field(default_factory=BeamConfig)
    config: TranslateConfig = field(default_factory=TranslateConfig)
    format: Format = Format.text
    column: int | None = None
    prefix: str = ""
    prefix_column: int | None = None
    terms: Terminology | None = None
    num_columns: int | None = None


def with_named_columns(settings: LineSettings, header: str, column: str, prefix_column: str | None) -> LineSettings:
    """The settings with the columns that a table's first line names.

    Raises:
        UserError: there is no such column, or several.
    """
    names = header.split("\t")

    def place(key: str, name: str) -> int:
        if names.count(name) != 1:
            raise UserError(f"{key}: the table has {names.count(name) or 'no'} columns named {name!r}, but {names}")
        return names.index(name) + 1

    own = None if prefix_column is None else place("prefix_column", prefix_column)
    return replace(settings, column=place("column", column), prefix_column=own)


def header_line(header: str, settings: LineSettings) -> str:
    """A table's names of columns, with those of the added ones; nothing of JSON lines."""
    if settings.format is Format.jsonl:
        return ""
    return "\t".join([header, TRANSLATION, *([ALIGNMENT] if settings.config.align else [])]) + "\n"


def translate_lines(
    translator: Translator, lines: Sequence[bytes], settings: LineSettings, first_line: int, name: str, done: OnDone
) -> bytes:
    """The output of some lines, with its line feeds.

    Args:
        lines: without line feeds.
        first_line: the number of the first of them.
        name: of the file, for messages; empty: standard input.
    Raises:
        UserError: a line is not UTF-8, lacks a column, or has no room for its prefix or terms; names file and line.
    """
    texts = [decoded(line, where(name, number)) for number, line in enumerate(lines, start=first_line)]
    cells = [_cells(text, settings, where(name, number)) for number, text in enumerate(texts, start=first_line)]
    sources = [source for source, _ in cells]
    prefixes = [prefix for _, prefix in cells]
    if settings == LineSettings(settings.search, settings.config) and settings.config == TranslateConfig():
        found = translator.translate(sources, settings.search, first_line=first_line, done=done)
        return "".join(f"{text}\n" for text in found).encode()
    try:
        lists = translator.translations(
            sources,
            settings.search,
            settings.config,
            prefixes=prefixes if any(prefixes) else None,
            terms=settings.terms,
            first_line=first_line,
            done=done,
        )
    except UserError as error:
        raise UserError(f"{name}, {error}" if name else str(error)) from None
    results = zip(texts, sources, prefixes, lists, strict=True)
    return "".join(
        _output(number, text, source, prefix, translations, settings)
        for number, (text, source, prefix, translations) in enumerate(results, start=first_line)
    ).encode()


def where(name: str, number: int) -> str:
    """A line's place, for messages."""
    return f"{name}, line {number}" if name else f"line {number}"


def decoded(line: bytes, place: str) -> str:
    """
    Raises:
        UserError: the line is not UTF-8, or is longer than `read_lines` reads.
    """
    if len(line) > MAX_LINE_BYTES:
        raise UserError(f"{place}: has more than {MAX_LINE_BYTES:,} bytes, which is no text of one line: split it")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 ({error.reason} at byte {error.start}): convert it first") from None


def _cells(text: str, settings: LineSettings, place: str) -> tuple[str, str]:
    """The source and the prefix of a line."""
    if settings.column is None:
        return text, settings.prefix
    cells = text.split("\t")
    for key in ("column", "prefix_column"):
        number = getattr(settings, key)
        if number is not None and number > len(cells):
            raise UserError(f"{place}: has {len(cells)} columns, and {key}={number} is none of them")
    if settings.num_columns is not None and len(cells) > settings.num_columns:
        raise UserError(
            f"{place}: has {len(cells)} columns, and the table's first line {settings.num_columns}, so that the "
            "translation would have no column of its own: mend the line, or set format=jsonl"
        )
    prefix = settings.prefix if settings.prefix_column is None else cells[settings.prefix_column - 1]
    return cells[settings.column - 1], prefix


def _output(
    number: int, text: str, source: str, prefix: str, translations: Sequence[Translation], settings: LineSettings
) -> str:
    if settings.format is Format.text:
        best = translations[0]
        cells = [best.text.replace("\t", " "), *([pharaoh(best.alignment or [])] if settings.config.align else [])]
        if settings.column is None:
            return "\t".join(cells) + "\n"
        lacking = max(0, (settings.num_columns or 0) - 1 - text.count("\t"))
        return "\t".join([text, *[""] * lacking, *cells]) + "\n"
    record: dict[str, Any] = {"line": number, "source": source}
    if prefix:
        record["prefix"] = prefix
    if settings.terms:
        record["terms"] = settings.terms.targets(source)
    record["hypotheses"] = [_hypothesis(translation, settings) for translation in translations]
    record["normalization"] = f"score = log_probability / ((5 + tokens) / 6)^{settings.search.length_penalty:g}"
    return json_line(record)


def _hypothesis(translation: Translation, settings: LineSettings) -> dict[str, Any]:
    alignment = {"alignment": pharaoh(translation.alignment or [])} if settings.config.align else {}
    return {
        "text": translation.text,
        "score": round(translation.score, 4),
        "log_probability": round(translation.log_probability, 4),
        "tokens": translation.tokens,
        **alignment,
    }
