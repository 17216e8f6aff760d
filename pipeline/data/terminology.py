"""Terms of the source language with the terms that must be in the translation."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transloom.pipeline.data.json_lines import read_text_lines
from transloom.pipeline.data.words import collapse_whitespace, is_unspaced
from transloom.pipeline.errors import UserError


@dataclass(frozen=True)
class Terminology:
    """Source terms and their target terms."""

    pairs: tuple[tuple[str, str], ...]

    @staticmethod
    def read(path: Path) -> "Terminology":
        """The terms of a file: a line has a source term, a tab, and a target term. Blank lines are skipped.

        Raises:
            UserError: the file is missing or empty; a line is something else, or gives a source term another target
                term (names the line).
        """
        pairs: dict[str, tuple[str, str]] = {}
        for where, line in read_text_lines(path):
            if not line.strip():
                continue
            cells = [collapse_whitespace(cell) for cell in line.split("\t")]
            if len(cells) != 2 or not all(cells):
                raise UserError(f"terms: {where}: must be a source term, a tab and a target term")
            source, target = cells
            if pairs.setdefault(source.casefold(), (source, target))[1] != target:
                raise UserError(f"terms: {where}: {source!r} has another target term in a line before; leave one out")
        if not pairs:
            raise UserError(f"terms: {path} has no terms: write a source term, a tab and a target term a line")
        return Terminology(tuple(pairs.values()))

    def targets(self, text: str) -> list[str]:
        """The different target terms of the source terms in a text. Source terms are whole words, in upper or lower
        case; of two that overlap the first counts, and of two that begin at one place the longer. Scripts without
        spaces have no ends of words."""
        matches = self._pattern.finditer(collapse_whitespace(text))
        return list(dict.fromkeys(self._longest_first[(match.lastindex or 1) - 1][1] for match in matches))

    @cached_property
    def _longest_first(self) -> list[tuple[str, str]]:
        return sorted(self.pairs, key=lambda pair: -len(pair[0]))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        terms = [source for source, _ in self._longest_first]
        words = [_edge(term[0], r"(?<!\w)") + re.escape(term) + _edge(term[-1], r"(?!\w)") for term in terms]
        return re.compile("|".join(f"({word})" for word in words), re.IGNORECASE)


def _edge(character: str, boundary: str) -> str:
    return boundary if re.match(r"\w", character) and not is_unspaced(character) else ""
