"""Cuts a line into parts that a model can read: at the ends of sentences, else where a reader would pause."""

import re
from collections.abc import Callable

# Marks that end a sentence, with what closes behind them: before a space and a word that does not begin in lower case;
# in scripts without spaces anywhere.
_ENDS = re.compile(r"[.!?…][\"'”’»)\]]*(?=[^\S\n]+[^\sa-z])|[。！？｡][」』”’）]*(?=\S)|[।۔؟][\"'”’»)\]]*(?=\s)")
_ABBREVIATIONS = re.compile(
    r"(?:^|[\s(\"'])(?:\w|\d{1,2}|Mr|Mrs|Ms|Dr|St|Prof|No|Nr|vs|z\. ?B|u\. ?a|e\.g|i\.e|cf|bzw|ca)\.$"
)
_PAUSES = re.compile(r"[,;:)、，；：)]\s*|\s[-–—]\s|\s+")

Part = tuple[str, str]  # a text without space at its ends, and what stood between it and the next part


def sentences(text: str) -> list[Part]:
    """The sentences of a line. The parts and what stood between them, one after the other, are the stripped line.

    A full stop after an initial, a number of one or two digits or a common abbreviation ends no sentence.
    """
    return _cut(text.strip(), [end.end() for end in _ENDS.finditer(text.strip()) if not _is_abbreviation(end)])


def fitting_parts(text: str, fits: Callable[[str], bool]) -> list[Part]:
    """The sentences of a line, and those that do not fit in parts: cut at a comma or another pause, at a space, or
    inside a word where there is none, each time near the middle.

    Args:
        fits: whether the model can read a text. A single character is not cut, fitting or not.
    """
    parts: list[Part] = []
    for sentence, gap in sentences(text):
        pieces = _halves(sentence, fits)
        parts += [*pieces[:-1], (pieces[-1][0], gap)]
    return parts


def _is_abbreviation(end: re.Match[str]) -> bool:
    before = end.string[max(0, end.start() - 12) : end.start() + 1]
    return end[0] == "." and _ABBREVIATIONS.search(before) is not None


def _cut(text: str, places: list[int]) -> list[Part]:
    """The text cut at places; space at a cut belongs to no part."""
    parts: list[Part] = []
    start = 0
    for place in [*places, len(text)]:
        part = text[start:place].rstrip()
        rest = text[start + len(part) :]
        gap = rest[: len(rest) - len(rest.lstrip())]
        if part:
            parts.append((part, gap))
        start += len(part) + len(gap)
    return parts or [(text, "")]


def _halves(text: str, fits: Callable[[str], bool]) -> list[Part]:
    if len(text) < 2 or fits(text):
        return [(text, "")]
    middle = len(text) // 2
    pauses = [pause for pause in _PAUSES.finditer(text) if 0 < pause.end() < len(text)]
    # A comma in the middle half of the text comes before a space nearer to the middle.
    marks = [pause.end() for pause in pauses if pause[0].strip() and len(text) < 4 * pause.end() < 3 * len(text)]
    places = marks or [pause.end() for pause in pauses] or [middle]
    first, *others = _cut(text, [min(places, key=lambda place: abs(place - middle))])
    left = _halves(first[0], fits)
    right = _halves(others[0][0], fits) if others else []
    return [*left[:-1], (left[-1][0], first[1]), *right]
