"""Sentences side by side: where systems differ most, and in which words."""

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from enum import Enum
from itertools import groupby
from typing import NamedTuple
from unicodedata import category

from transloom.pipeline.evaluate.significance import Statistics, score_of


class Mark(Enum):
    """What is to be seen of a word: the others have it too; they do not, and the reference has it; nor has that."""

    same = "same"
    right = "right"
    wrong = "wrong"


class Said(NamedTuple):
    """One system's translation of a sentence: its chrF2, all of it in pieces with a mark each, its COMET if known."""

    system: str
    chrf: float
    words: list[tuple[str, Mark]]
    comet: float | None = None


class Sentence(NamedTuple):
    """One sentence of the test set by its line (from 1); the source is None where it is not known."""

    line: int
    source: str | None
    reference: str
    said: list[Said]


def sentence_scores(statistics: Mapping[str, Statistics]) -> dict[str, list[float]]:
    """Each sentence's chrF2 by system. (BLEU of one sentence says little: mostly it lacks a four-gram.)"""
    return {name: [score_of("chrf", [counts]) for counts in of_system] for name, of_system in statistics.items()}


def most_different(
    scores: Mapping[str, Sequence[float]],
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    sources: Sequence[str] | None,
    count: int,
    comet: Mapping[str, Sequence[float]] | None = None,
) -> list[Sentence]:
    """The sentences on which the best and the worst system are farthest apart by chrF2, farthest first.

    Args:
        scores: chrF2 of each sentence, by system. comet: the same of COMET, to be shown beside it.
    """
    spread = [max(values) - min(values) for values in zip(*scores.values(), strict=True)]
    places = sorted(range(len(references)), key=lambda place: -spread[place])[:count]
    return [
        Sentence(
            place + 1,
            sources[place] if sources is not None else None,
            references[place],
            [
                Said(name, scores[name][place], words, comet[name][place] if comet else None)
                for name, words in marked({n: said[place] for n, said in systems.items()}, references[place]).items()
            ],
        )
        for place in places
        if spread[place] > 0
    ]


def marked(said: Mapping[str, str], reference: str) -> dict[str, list[tuple[str, Mark]]]:
    """Each translation in pieces that, joined, are all of it: what has one mark is one piece. A system's words are held
    against the first one's, the first one's against those of all others."""
    pieces = {name: _pieces(text) for name, text in said.items()}
    words = {name: [piece for piece in its if not piece.isspace()] for name, its in pieces.items()}
    meant = [piece for piece in _pieces(reference) if not piece.isspace()]
    first, *others = words
    marks = {}
    for name, its in words.items():
        against = others if name == first else [first]
        shared = [_shared(its, words[other]) for other in against]
        right = _shared(its, meant)
        found = [
            Mark.same if all(one[place] for one in shared) else Mark.right if right[place] else Mark.wrong
            for place in range(len(its))
        ]
        marks[name] = _joined(pieces[name], found)
    return marks


def _pieces(text: str) -> list[str]:
    """Words, single signs of punctuation, and the spaces between them."""
    pieces = []
    for kind, run in groupby(text, _kind):
        characters = list(run)
        pieces += characters if kind == "punctuation" else ["".join(characters)]
    return pieces


def _kind(character: str) -> str:
    return "space" if character.isspace() else "punctuation" if category(character)[0] in "PS" else "word"


def _shared(words: Sequence[str], others: Sequence[str]) -> list[bool]:
    """Of each of the words, whether it is one of the others in the same order."""
    shared = [False] * len(words)
    for start, _, size in SequenceMatcher(None, words, others, autojunk=False).get_matching_blocks():
        shared[start : start + size] = [True] * size
    return shared


def _joined(pieces: Sequence[str], marks: Sequence[Mark]) -> list[tuple[str, Mark]]:
    """The pieces with the marks of the words; a space has its neighbours' mark where that is one."""
    joined: list[tuple[str, Mark]] = []
    coming = iter(marks)
    following = next(coming, Mark.same)
    for piece in pieces:
        if piece.isspace():
            mark = following if joined and joined[-1][1] is following else Mark.same
        else:
            mark, following = following, next(coming, Mark.same)
        if joined and joined[-1][1] is mark:
            joined[-1] = (joined[-1][0] + piece, mark)
        else:
            joined.append((piece, mark))
    return joined
