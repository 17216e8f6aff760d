"""Parts of a test set: sentences by length, words by how often they were seen in training."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from transloom.pipeline.evaluate.tokenizers import DEFAULT, SPACED, load_tokenizer

LENGTHS = (5, 10, 15, 20, 30, 40, 50)  # words: up to 5, 6 to 10, …, 51 and more
FREQUENCIES = (0, 4, 19, 99)  # never, 1 to 4 times, …, 100 times and more
LINES_BETWEEN_REPORTS = 20_000


def _label(bounds: Sequence[int], value: int) -> str:
    """The bucket that a value is in: "6-10", "0", "51+"."""
    place = bisect_left(bounds, value)
    if place == len(bounds):
        return f"{bounds[-1] + 1}+"
    low = bounds[place - 1] + 1 if place else 0
    return str(low) if low == bounds[place] else f"{low}-{bounds[place]}"


def _labels(bounds: Sequence[int]) -> list[str]:
    return [_label(bounds, bound) for bound in (*bounds, bounds[-1] + 1)]


def by_length(references: Sequence[str], tokenize: str = DEFAULT) -> dict[str, list[int]]:
    """The places of the sentences by the number of their reference's words, shortest first; no empty bucket. Words
    stand between spaces; where the language has none, they are the tokens of BLEU's tokenizer."""
    lengths = map(len, map(str.split, references) if tokenize in SPACED else words_of(references, tokenize))
    places: dict[str, list[int]] = {label: [] for label in _labels(LENGTHS)}
    for place, length in enumerate(lengths):
        places[_label(LENGTHS, length)].append(place)
    return {label: found for label, found in places.items() if found}


def words_of(lines: Iterable[str], tokenize: str = DEFAULT) -> list[list[str]]:
    """The words that BLEU counts by this tokenizer: cased."""
    tokenizer = load_tokenizer(tokenize)
    return [tokenizer(line.rstrip()).split() for line in lines]


def frequencies(
    training: Iterable[str],
    words: Iterable[str],
    progress: Callable[[str, int, int], None] = lambda *_: None,
    tokenize: str = DEFAULT,
) -> dict[str, int]:
    """How often each of the words is in the training text."""
    wanted = set(words)
    counts: Counter[str] = Counter()
    tokenizer = load_tokenizer(tokenize)
    for done, line in enumerate(training):
        counts.update(word for word in tokenizer(line.rstrip()).split() if word in wanted)
        if done % LINES_BETWEEN_REPORTS == 0:
            progress("counting words of the training text, lines", done, 0)
    return {word: counts[word] for word in wanted}


def reference_words_by_frequency(references: Sequence[Sequence[str]], seen: Mapping[str, int]) -> dict[str, int]:
    """How many of the references' words are in each bucket of training frequency, rarest first; no empty bucket."""
    counts = Counter(_label(FREQUENCIES, seen[word]) for words in references for word in words)
    return {label: counts[label] for label in _labels(FREQUENCIES) if counts[label]}


def f1_by_frequency(
    hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[str]], seen: Mapping[str, int]
) -> dict[str, float]:
    """How well a system gets words right (F1, 0 to 100), by how often they are in its training text.

    A word is right as often as both the sentence's translation and its reference have it, wherever it stands. After
    compare-mt's word accuracies (Neubig et al. 2019, "compare-mt: A Tool for Holistic Comparison of Language Generation
    Systems", section 3).

    Args:
        hypotheses: with `references` the words of each sentence.
        seen: of every one of their words, how often it is in the training text.
    """
    right, said, meant = Counter[str](), Counter[str](), Counter[str]()
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        for words, counts in ((hypothesis, said), (reference, meant)):
            counts.update(_label(FREQUENCIES, seen[word]) for word in words)
        both = Counter(hypothesis) & Counter(reference)
        right.update(_label(FREQUENCIES, seen[word]) for word in both.elements())
    return {
        label: 200.0 * right[label] / (said[label] + meant[label]) for label in _labels(FREQUENCIES) if meant[label]
    }
