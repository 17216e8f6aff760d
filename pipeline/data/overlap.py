"""Finds sentences in two splits: a score on sentences that a model has memorised says nothing about its quality."""

import csv
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from transloom.pipeline.data.json_lines import is_json_lines, read_text_lines
from transloom.pipeline.data.pairs import SentencePair


def spaces_alike(text: str) -> str:
    """The text with one space for each run of Unicode white space, such as a no-break space; for comparisons."""
    if text.isprintable() and "  " not in text and text.strip() == text:  # no other white space is printable
        return text
    return " ".join(text.split())


def bare_words(text: str) -> str:
    """The text without case, digits, punctuation, accents and other marks, one space between words; the whole text
    where nothing of it is left."""
    return " ".join(filter(None, (word.strip("0123456789") for word in _words(text)))) or spaces_alike(text)


def pair_hash(pair: SentencePair) -> int:
    """A hash of 96 bits, equal for pairs that differ in whitespace alone."""
    text = "\n".join(map(spaces_alike, pair))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=12).digest())


class Sides:
    """The sentences of some pairs as hashes, a set for each side: about 150 bytes of memory a sentence."""

    def __init__(self, pairs: Iterable[SentencePair] = ()) -> None:
        self._hashes: tuple[set[bytes], set[bytes]] = (set(), set())
        self._quick: tuple[set[int], set[int]] = (set(), set())  # Python's own hashes: most sentences are in neither
        for pair in pairs:
            self.add(pair)

    def add(self, pair: SentencePair) -> None:
        """Adds both sentences, but no empty sentence."""
        for hashes, quick, text in zip(self._hashes, self._quick, pair, strict=True):
            if text := spaces_alike(text):
                hashes.add(_hash(text))
                quick.add(hash(text))

    def share(self, pair: SentencePair) -> bool:
        """Whether the pair's source is among the sources, or its target among the targets; whitespace aside."""
        source, target = spaces_alike(pair.source), spaces_alike(pair.target)
        return (hash(source) in self._quick[0] and _hash(source) in self._hashes[0]) or (
            hash(target) in self._quick[1] and _hash(target) in self._hashes[1]
        )


class SimilarSentences:
    """Sentences of both sides, to find those that a sentence of the same side is similar to.

    The similarity of two sentences is the number of word pairs (two words in a row, and the first and last word with
    the sentence's end) that both have, over the number that either has: Jaccard's index. Case, punctuation and accents
    make no difference.

    Args:
        threshold: the least similarity, above 0.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._texts: tuple[list[str], list[str]] = ([], [])
        self._sizes: tuple[list[int], list[int]] = ([], [])
        self._places: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})

    def add(self, pair: SentencePair) -> None:
        for texts, sizes, places, text in zip(self._texts, self._sizes, self._places, pair, strict=True):
            if word_pairs := _word_pairs(text):
                for word_pair in word_pairs:
                    places.setdefault(word_pair, []).append(len(texts))
                texts.append(text)
                sizes.append(len(word_pairs))

    def find(self, pair: SentencePair) -> str | None:
        """The sentence most similar to the source or else to the target, of at least the threshold, or None."""
        for texts, sizes, places, text in zip(self._texts, self._sizes, self._places, pair, strict=True):
            word_pairs = _word_pairs(text)
            known = [places[word_pair] for word_pair in word_pairs if word_pair in places]
            if not known or len(known) < self._threshold * len(word_pairs):
                continue  # the common part is at most len(known), and the whole at least len(word_pairs)
            common = Counter(place for of_pair in known for place in of_pair)
            best = max(common, key=lambda place: (_jaccard(common[place], sizes[place], len(word_pairs)), -place))
            if _jaccard(common[best], sizes[best], len(word_pairs)) >= self._threshold:
                return texts[best]
        return None


def _jaccard(common: int, size: int, other: int) -> float:
    return common / (size + other - common)


def _word_pairs(text: str) -> set[str]:
    words = _words(text)
    return {f"{one} {other}" for one, other in pairwise(["", *words, ""])} if words else set()


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


NGRAM = 8  # words: two texts that share so many in a row are taken to have one origin
LEAST_WORDS = 4  # of a whole sentence that is looked for inside a text; shorter ones occur by chance
_NEGATION = re.compile(r"n ?['’]t\b")
_WORD = re.compile(r"[^\W_]+")
_BRACKETS = frozenset(("lrb", "rrb", "lsb", "rsb"))  # the Penn Treebank's


class Sentences:
    """Sentences that must not stand in other texts. Case, punctuation, accents and the Treebank's spaces make no
    difference: don't and do n't are equal."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._runs: dict[int, set[str]] = {}  # runs of words by their number
        self._whole: set[str] = set()
        self._parts: set[bytes] = set()  # hashes of the runs of fewer than NGRAM words within sentences
        for text in texts:
            words = _words(text)
            self._parts.update(_hash(run) for length in range(LEAST_WORDS, NGRAM) for run in _runs(words, length))
            if len(words) >= NGRAM:
                self._runs.setdefault(NGRAM, set()).update(_runs(words, NGRAM))
            elif len(words) >= LEAST_WORDS:
                self._runs.setdefault(len(words), set()).add(" ".join(words))
            elif words:
                self._whole.add(" ".join(words))

    def shared(self, text: str) -> str | None:
        """The first words that a text shares with the sentences; None without any.

        These are NGRAM words in a row, a whole sentence of fewer but at least LEAST_WORDS words, or the whole text
        where that is a still shorter sentence, or a part of a sentence with at least LEAST_WORDS words.
        """
        words = _words(text)
        if (whole := " ".join(words)) in self._whole or _hash(whole) in self._parts:
            return whole
        for length, runs in self._runs.items():
            if found := next((run for run in _runs(words, length) if run in runs), None):
                return found
        return None


def read_sentences(file: Path) -> Iterator[str]:
    """The texts of a file: its lines, of lines with tabs or of CSV each cell, of JSON lines each text in the objects.

    Raises:
        UserError: see `read_text_lines`.
    """
    is_json, is_csv = is_json_lines(file), ".csv" in file.suffixes[-2:]
    for _, line in read_text_lines(file):
        if is_json and line.strip():
            try:
                yield from _texts_in(json.loads(line))
                continue
            except ValueError:
                pass  # a line of text in spite of the file's name
        yield from next(csv.reader([line]), []) if is_csv else line.split("\t")


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from value.split("\n")
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(part)


def _words(text: str) -> list[str]:
    plain = "".join(x for x in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(x))
    return [word for word in _WORD.findall(_NEGATION.sub(" n t", plain)) if word not in _BRACKETS]


def _runs(words: list[str], length: int) -> Iterator[str]:
    return (" ".join(words[i : i + length]) for i in range(len(words) - length + 1))
