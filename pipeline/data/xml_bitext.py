"""Streams pairs from TMX and XLIFF, files of translation memories; memory does not grow with the file.

The files may be anybody's. Entities of a file's own are refused, before any of them is expanded; nothing that a file
names elsewhere, such as a DTD, is read; and nesting and the length of a tag have limits.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from transloom.pipeline.data.lines import MAX_LINE_BYTES, open_text
from transloom.pipeline.errors import UserError

BLOCK_BYTES = 1 << 16
MAX_DEPTH = 100
MAX_TAG_BYTES = 8 << 20  # expat holds a whole tag in memory
# Elements inside a segment whose text is a code of the document's format, and no part of the sentence.
CODES = frozenset(("bpt", "ept", "ph", "it", "ut"))
UNITS = frozenset(("tu", "trans-unit", "segment"))
SIDES = frozenset(("tuv", "source", "target"))

XmlRow = tuple[int, str | None, str | None]  # line, source and target; None: the unit has no such text


@dataclass
class _Unit:
    """What was read of a unit so far.

    Attributes:
        line: of its beginning. texts: by language.
    """

    line: int
    texts: dict[str, str] = field(default_factory=dict)


class _Reader:
    """Handlers of expat that collect rows."""

    def __init__(self, file: Path, source_language: str, target_language: str) -> None:
        self.rows: list[XmlRow] = []
        self.languages: Counter[str] = Counter()
        self.num_units = 0
        self.num_whole = 0  # units with both languages
        self._file = file
        self._wanted = (source_language, target_language)
        self._unit: _Unit | None = None
        self._of_file = ("", "")  # the languages of an XLIFF file's sides
        self._language: str | None = None  # of the side that is being read
        self._text: list[str] | None = None
        self._size = 0
        self._codes = 0  # elements of codes that are open
        self._others = 0  # elements alt-trans that are open: proposals, which nobody has accepted
        self._depth = 0
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self.parser.EntityDeclHandler = self._refuse_entity

    def _refuse_entity(self, name: str, *_: Any) -> None:
        raise UserError(
            f"{self._file} line {self.parser.CurrentLineNumber}: declares the entity {name!r}. Entities can be bombs "
            "and are not read: write the characters themselves"
        )

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UserError(
                f"{self._file} line {self.parser.CurrentLineNumber}: elements are nested more than {MAX_DEPTH} deep, "
                "as in no TMX or XLIFF"
            )
        name = name.rpartition(":")[2]
        if self._text is not None:
            self._codes += self._codes > 0 or name in CODES
            return
        if name == "alt-trans" or self._others:
            self._others += 1
        elif name in UNITS:
            self._unit = _Unit(self.parser.CurrentLineNumber)
        elif name in ("file", "xliff"):
            source = attributes.get("source-language") or attributes.get("srcLang") or self._of_file[0]
            target = attributes.get("target-language") or attributes.get("trgLang") or self._of_file[1]
            self._of_file = (source, target)
        elif self._unit is None:
            return
        elif name == "tuv":
            self._language = attributes.get("xml:lang") or attributes.get("lang") or "?"
        elif name in ("source", "target"):
            # A file that names no language of its sides has those that are asked for.
            side = name == "target"
            self._language = self._of_file[side] or self._wanted[side]
            self._begin_text()
        elif name == "seg" and self._language is not None:
            self._begin_text()

    def _begin_text(self) -> None:
        self._text, self._size, self._codes = [], 0, 0

    def _characters(self, data: str) -> None:
        # The rest of a segment that is too long for any sentence is never in memory; cleaning refuses what is kept.
        if self._text is not None and not self._codes and self._size <= MAX_LINE_BYTES:
            self._text.append(data)
            self._size += len(data)

    def _end(self, name: str) -> None:
        self._depth -= 1
        name = name.rpartition(":")[2]
        if self._text is not None:
            if self._codes:
                self._codes -= 1
            elif name in ("seg", "source", "target"):
                assert self._unit is not None and self._language is not None
                self._unit.texts.setdefault(self._language, "".join(self._text).replace("\n", " ").replace("\r", " "))
                self._text = None
        elif self._others:
            self._others -= 1
        elif name in UNITS and self._unit is not None:
            self._end_unit(self._unit)
            self._unit = None
        if name in SIDES and self._text is None:
            self._language = None

    def _end_unit(self, unit: _Unit) -> None:
        self.num_units += 1
        self.languages.update(list(unit.texts))
        source, target = (_chosen(unit.texts, language) for language in self._wanted)
        self.num_whole += source is not None and target is not None
        self.rows.append((unit.line, source, target))


def _chosen(texts: dict[str, str], wanted: str) -> str | None:
    """The text of a language: en is en, or else en-US; en-GB is en-GB alone. None where it is missing or blank."""
    wanted = wanted.lower().replace("_", "-")
    plain = {language.lower().replace("_", "-"): text for language, text in texts.items() if text.strip()}
    if wanted in plain:
        return plain[wanted]
    return next((text for language, text in plain.items() if language.startswith(f"{wanted}-")), None)


def xml_rows(file: Path, source_language: str, target_language: str) -> Iterator[XmlRow]:
    """Streams (line, source, target) of the units of a TMX or XLIFF file; XLIFF 1.2 and 2.

    Args:
        file: may be compressed.
    Raises:
        UserError: the file is truncated or not well formed, has entities, or no unit has both languages; names the
            file and, but for the last, the line.
    """
    reader = _Reader(file, source_language, target_language)
    parser, num_bytes = reader.parser, 0
    with open_text(file) as opened:
        while True:
            block = opened.read(BLOCK_BYTES)
            try:
                parser.Parse(block, not block)
            except expat.ExpatError as error:
                raise UserError(
                    f"{file} line {error.lineno} column {error.offset + 1}: not well-formed XML "
                    f"({expat.ErrorString(error.code)}). Mend the file, or fetch it again"
                ) from None
            except (ValueError, LookupError) as error:  # an encoding that Python does not know
                raise UserError(f"{file}: can't be decoded ({error}). Write it in UTF-8") from None
            num_bytes += len(block)
            if num_bytes - parser.CurrentByteIndex > MAX_TAG_BYTES and block:
                raise UserError(
                    f"{file} line {parser.CurrentLineNumber}: a tag is longer than {MAX_TAG_BYTES:,} bytes, as in no "
                    "TMX or XLIFF"
                )
            yield from reader.rows
            reader.rows.clear()
            if not block:
                break
    if not reader.num_whole:
        known = ", ".join(f"{name} ({count:,})" for name, count in reader.languages.most_common(20)) or "no language"
        raise UserError(
            f"{file}: none of its {reader.num_units:,} units has both {source_language} and {target_language}; it has "
            f"{known}. Set the languages of the corpus or of this source"
        )
