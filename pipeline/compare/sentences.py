"""Sentences side by side: where systems differ most, and in which words."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from enum import Enum
from typing import NamedTuple

from pipeline.evaluate.significance import Statistics, score_of


class Mark(Enum):
    """What is to be seen of a word: the others have it too; they do not, and the reference has it; nor has that."""

    same = "same"
    right = "right"
    wrong = "wrong"


class Said(NamedTuple):
    """One system's translation of a sentence: its chrF2, and runs of words with a mark each."""

    system: str
    chrf: float
    words: list[tuple[str, Mark]]


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
) -> list[Sentence]:
    """The sentences on which the best and the worst system are farthest apart by chrF2, farthest first."""
    spread = [max(values) - min(values) for values in zip(*scores.values(), strict=True)]
    places = sorted(range(len(references)), key=lambda place: -spread[place])[:count]
    return [
        Sentence(
            place + 1,
            sources[place] if sources is not None else None,
            references[place],
            [
                Said(name, scores[name][place], words)
                for name, words in marked({n: said[place] for n, said in systems.items()}, references[place]).items()
            ],
        )
        for place in places
        if spread[place] > 0
    ]


def marked(said: Mapping[str, str], reference: str) -> dict[str, list[tuple[str, Mark]]]:
    """The words of each translation with their marks, neighbours of one mark joined. A system's words are held against
    the first one's, the first one's against those of all others."""
    words = {name: text.split() for name, text in said.items()}
    first, *others = words
    marks = {}
    for name, its in words.items():
        differing = [not same for same in _shared(its, words[first])]
        if name == first:
            shared = [_shared(its, words[other]) for other in others]
            differing = [not all(one[place] for one in shared) for place in range(len(its))]
        right = _shared(its, reference.split())
        marks[name] = _joined(
            (word, (Mark.right if right[place] else Mark.wrong) if differing[place] else Mark.same)
            for place, word in enumerate(its)
        )
    return marks


def _shared(words: Sequence[str], others: Sequence[str]) -> list[bool]:
    """Of each of the words, whether it is one of the others in the same order."""
    shared = [False] * len(words)
    for start, _, size in SequenceMatcher(None, words, others, autojunk=False).get_matching_blocks():
        shared[start : start + size] = [True] * size
    return shared


def _joined(words: Iterable[tuple[str, Mark]]) -> list[tuple[str, Mark]]:
    joined: list[tuple[str, Mark]] = []
    for word, mark in words:
        if joined and joined[-1][1] is mark:
            joined[-1] = (f"{joined[-1][0]} {word}", mark)
        else:
            joined.append((word, mark))
    return joined
