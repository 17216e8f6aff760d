"""Texts rewritten as the Penn Treebank's tokeniser has them, in lower case, and texts cut into sentences."""

import re
import unicodedata

# An end of a sentence: a full stop, question or exclamation mark with what closes behind it, before a space and a word
# that begins with a capital, a digit or an opening mark.
_ENDS = re.compile(r"(?<=[.!?])([\"'”’)\]]*)\s+(?=[\"'“‘(\[]*[A-Z0-9])")
# Abbreviations before which a full stop ends no sentence.
_ABBREVIATIONS = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Prof|Rev|Gen|Col|Capt|Lt|Sgt|Hon|No|vs|etc|e\.g|i\.e|[A-Z])\.$")
_CURLY = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "—": "-", "–": "-", "…": " "})
_CONTRACTIONS = re.compile(r"(?<=\w)('(?:s|re|ve|ll|d|m))\b|(?<=\w)(n't)\b")
_OPENING = re.compile(r'(^|[\s(\[])"')
_OPENING_SINGLE = re.compile(r"(^|\s)'(?!(?:s|re|ve|ll|d|m)\b)(?=[^\W\d])")
_MARKS = re.compile(r"([,?!])")
_BRACKETS = str.maketrans({"(": " lrb ", "[": " lrb ", ")": " rrb ", "]": " rrb "})
_OTHERS = re.compile(r"[^\w\s,?!'`]|_")


def sentences(text: str) -> list[str]:
    """The sentences of a text, each on one line, by rules for English; a text without an end is one sentence."""
    line = " ".join(text.split())
    parts: list[str] = []
    start = 0
    for match in _ENDS.finditer(line):
        if not _ABBREVIATIONS.search(line, start, match.start()):
            parts.append(line[start : match.end(1)])
            start = match.end()
    return [part for part in (*parts, line[start:]) if part]


def treebank(text: str) -> str:
    """The text in the form of the Stanford Sentiment Treebank's sentences: lower case; a space around commas, question
    and exclamation marks; quotation marks as `` and ''; 's and n't apart; brackets as lrb and rrb; without accents and
    without all other signs, full stops and hyphens among them. A line stays a line.

    It's a “charming” film. -> it 's a `` charming '' film
    """
    lines = (_treebank_line(line) for line in text.split("\n"))
    return "\n".join(lines)


def _treebank_line(line: str) -> str:
    line = line.translate(_CURLY).lower()
    line = "".join(x for x in unicodedata.normalize("NFKD", line) if not unicodedata.combining(x))
    line = _OPENING.sub(r"\1 `` ", line).replace('"', " '' ").translate(_BRACKETS)
    line = _OPENING_SINGLE.sub(r"\1` ", line)
    line = _MARKS.sub(r" \1 ", line)
    line = _CONTRACTIONS.sub(r" \1\2", line)
    return " ".join(_OTHERS.sub(" ", line).split())
