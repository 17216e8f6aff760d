"""Inline tags of a segment: taken out before it is translated, and put into the translation.

A pair of tags goes around the words that are aligned with the words it was around, a single tag to the place that
divides the alignment as it divided the source. Tags keep their nesting, so the result is well-formed; each tag of the
source is there once.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

Links = Sequence[tuple[int, int]]  # (source word, target word), from 0

_WORD = re.compile(r"[^ \t\n\r\f\v]+")
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass
class Tag:
    """A single tag, or a whole element that is code and no text, as it stands in the file.

    Attributes:
        pair: what two single tags, such as <bpt i="1"> and <ept i="1">, have in common.
        opens: whether it is the first of the two.
    """

    raw: str
    pair: str | None = None
    opens: bool = False


@dataclass
class Pair:
    """What stands between two tags."""

    start: str
    end: str = ""
    children: "list[Node]" = field(default_factory=list)


Node = str | Tag | Pair


def text_of(nodes: Sequence[Node]) -> str:
    """The text without its tags."""
    return "".join(
        node if isinstance(node, str) else text_of(node.children) if isinstance(node, Pair) else "" for node in nodes
    )


def as_xml(text: str) -> str:
    """The text escaped, with a space in place of a character that XML does not have."""
    return escape(_NO_XML.sub(" ", text))


def markup_of(nodes: Sequence[Node]) -> str:
    """The nodes as they stood in the file."""
    parts = []
    for node in nodes:
        match node:
            case str():
                parts.append(as_xml(node))
            case Tag():
                parts.append(node.raw)
            case Pair():
                parts.append(node.start + markup_of(node.children) + node.end)
    return "".join(parts)


def paired(nodes: Sequence[Node]) -> list[Node]:
    """The nodes with pairs of single tags, where these are nested, as `Pair`."""
    done: list[Node] = []
    opened: list[tuple[int, Tag]] = []  # places in `done`
    for node in nodes:
        if isinstance(node, Pair):
            node.children = paired(node.children)
        if isinstance(node, Tag) and node.pair is not None:
            if node.opens:
                opened.append((len(done), node))
            elif opened and opened[-1][1].pair == node.pair:
                place, first = opened.pop()
                node = Pair(first.raw, node.raw, done[place + 1 :])
                del done[place:]
        done.append(node)
    return done


def with_tags(nodes: Sequence[Node], translation: str, links: Links) -> str:
    """The translation as XML, with the tags of the source's nodes and its space at both ends.

    Args:
        links: the alignment of the words of `text_of(nodes)` and of the translation; without any, a tag comes to the
            same relative place.
    """
    text = text_of(nodes)
    inner = text.strip()
    if not inner:
        return markup_of(nodes)
    start = len(text) - len(text.lstrip())
    words = [(start + word.start(), start + word.end()) for word in _WORD.finditer(inner)]
    target = _WORD.findall(translation)
    writer = _Writer(text, words, target, links, behind=start + len(inner))
    writer.write_all(paired(nodes), 0, len(target), 0)
    writer.write_ends(len(text), len(target))
    return "".join(writer.parts)


@dataclass
class _Writer:
    """
    Attributes:
        words: (start, end) of the source's words in the text. target: the translation's words.
        before, behind: up to where the space before the first word, and that behind the last, is written.
    """

    text: str
    words: list[tuple[int, int]]
    target: list[str]
    links: Links
    before: int = 0
    behind: int = 0
    parts: list[str] = field(default_factory=list)
    needs_space: bool = False  # between the last word and what comes next

    def write_all(self, nodes: Sequence[Node], low: int, high: int, at: int) -> None:
        """Writes target words low to high, and the nodes' tags among them. `at`: where the nodes' text begins."""
        placed: list[tuple[int, int, int, Tag | Pair]] = []  # first word, word behind the last, place in the text
        for node in nodes:
            if isinstance(node, Tag):
                place = self._boundary(at, low, high)
                placed.append((place, place, at, node))
            elif isinstance(node, Pair):
                first, last = self._range(at, at + len(text_of(node.children)), low, high)
                placed.append((first, last, at, node))
            at += len(node) if isinstance(node, str) else len(text_of(node.children)) if isinstance(node, Pair) else 0
        word = low
        for first, last, place, node in sorted(placed, key=lambda item: item[0]):
            self._write_words(word, max(word, first))
            word = max(word, first)
            if isinstance(node, Tag):
                self._write_tag(node, place, word)
                continue
            last = max(word, last)
            self.write_ends(place, word)
            self._space(word < last)
            self.parts.append(node.start)
            self.write_all(node.children, word, last, place)
            self.write_ends(place + len(text_of(node.children)), last)
            self.parts.append(node.end)
            word = last
        self._write_words(word, high)

    def _write_words(self, first: int, last: int) -> None:
        for word in self.target[first:last]:
            self.write_ends(self.words[0][0], 0)
            self._space(True)
            self.parts.append(as_xml(word))
            self.needs_space = True

    def write_ends(self, place: int, word: int) -> None:
        """Writes the text's space at its ends up to a place of the text, where `word` words are written."""
        first, last = self.words[0][0], self.words[-1][1]
        if place <= first or word:
            self.parts.append(self.text[self.before : min(place, first)])
            self.before = max(self.before, min(place, first))
        if place >= last and word == len(self.target):
            self.parts.append(self.text[self.behind : place])
            self.behind = max(self.behind, place)

    def _write_tag(self, tag: Tag, place: int, word: int) -> None:
        """With a space on each side where the source has one."""
        self.write_ends(place, word)
        is_inside = self.words[0][0] < place < self.words[-1][1]
        self._space(is_inside and self.text[place - 1].isspace())
        self.parts.append(tag.raw)
        self.needs_space |= is_inside and self.text[place].isspace()

    def _space(self, is_wanted: bool) -> None:
        if is_wanted and self.needs_space:
            self.parts.append(" ")
            self.needs_space = False

    def _boundary(self, place: int, low: int, high: int) -> int:
        """The target word before which a tag at this place of the text comes."""
        before = sum(start < place for start, _ in self.words)
        relative = before * len(self.target) / len(self.words)

        def cost(target: int) -> tuple[int, float]:
            crossed = sum((i < before) != (j < target) for i, j in self.links)
            return crossed, abs(target - relative)

        return min(range(low, high + 1), key=cost)

    def _range(self, start: int, end: int, low: int, high: int) -> tuple[int, int]:
        """The target words, first and behind the last, of what stands from start to end of the text."""
        inside = [i for i, (first, last) in enumerate(self.words) if first < end and last > start]
        if not inside:
            place = self._boundary(start, low, high)
            return place, place
        if len(inside) == len(self.words):
            return low, high
        targets = [j for i, j in self.links if inside[0] <= i <= inside[-1]]
        if targets:
            first, last = min(targets), max(targets) + 1
        else:
            scale = len(self.target) / len(self.words)
            first, last = round(inside[0] * scale), round((inside[-1] + 1) * scale)
        return min(max(first, low), high), max(min(last, high), low)
