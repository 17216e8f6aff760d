"""The baseline of language models: an n-gram model of bytes with interpolated modified Kneser-Ney smoothing.

Chen & Goodman 1998, "An Empirical Study of Smoothing Techniques for Language Modeling", section 3. The symbols are the
256 bytes and the end of text, which is predicted after each document, as by a language model. Each document begins with
order - 1 ends of text as context. The probabilities of all strings of bytes sum to 1, so bits per byte are comparable
with those of any lossless tokenizer.

    p_k(w | h) = max(c(hw) - D(c(hw)), 0) / c(h) + (D1 N1(h) + D2 N2(h) + D3 N3+(h)) / c(h) * p_{k-1}(w | h')

h' is h without its first symbol. c counts occurrences for the largest order, and different symbols before hw for the
other orders. Nr(h) is the number of symbols that follow h with c = r, and p_0 is uniform.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

SYMBOLS = 257  # the bytes and the end of text
END = 256
MAX_ORDER = 7  # 257**7 is below 2**63
BLOCK = 1 << 20  # symbols processed at a time


@dataclass(frozen=True)
class _Order:
    """One k-gram model. Letters: G different k-grams, H different contexts of k - 1 symbols. The digits of a gram's
    code, to the base SYMBOLS, are its symbols, so the context's code is code // SYMBOLS.

    Attributes:
        grams: (G,) int64 sorted codes.
        discounted: (G,) max(c - D(c), 0) / c(h).
        contexts: (H,) int64 sorted codes.
        backoff: (H,) the factor of p_{k-1}.
    """

    grams: np.ndarray
    discounted: np.ndarray
    contexts: np.ndarray
    backoff: np.ndarray


class NgramModel:
    """The probabilities of the next byte, or of the end of text, after order - 1 symbols; see `train_ngram`."""

    def __init__(self, orders: list[_Order]) -> None:
        self._orders = orders
        self.order = len(orders)

    def bits(self, documents: Iterable[str]) -> np.ndarray:
        """(documents,) float64: -log2 of the probability of each document with its end of text."""
        totals: list[float] = []
        for codes, document in _blocks(documents, self.order):
            totals += [0.0] * (int(document[-1]) + 1 - len(totals))
            bits = -np.log2(self.probabilities(codes))
            first = int(document[0])
            for index, amount in enumerate(np.bincount(document - first, weights=bits), first):
                totals[index] += float(amount)
        return np.array(totals)

    def probabilities(self, codes: np.ndarray) -> np.ndarray:
        """(n,) probability of each gram's last symbol, given its other symbols.

        Args:
            codes: (n,) int64 codes of grams of `order` symbols.
        """
        result = np.full(len(codes), 1.0 / SYMBOLS)
        for k, order in enumerate(self._orders, start=1):
            grams = codes % SYMBOLS**k
            result *= _looked_up(order.contexts, order.backoff, grams // SYMBOLS, 1.0)  # 1 after an unseen context
            result += _looked_up(order.grams, order.discounted, grams, 0.0)
        return result


def train_ngram(documents: Iterable[str], order: int = 5) -> NgramModel:
    """Counts all n-grams of bytes. Memory grows with the number of different n-grams, not with the text.

    Raises:
        ValueError: order is not from 1 to MAX_ORDER, or there are no documents.
    """
    if not 1 <= order <= MAX_ORDER:
        raise ValueError(f"order: must be from 1 to {MAX_ORDER}, not {order}")
    grams, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for codes, _ in _blocks(documents, order):
        grams, counts = _summed(np.concatenate([grams, codes]), np.concatenate([counts, np.ones(len(codes), np.int64)]))
    if not len(grams):
        raise ValueError("documents: there are none to count n-grams in")
    orders = []
    for k in range(order, 0, -1):
        orders.append(_smoothed(grams, counts))
        # Each different k-gram is one symbol before the (k-1)-gram at its end.
        grams, counts = np.unique(grams % SYMBOLS ** (k - 1), return_counts=True)
    return NgramModel(orders[::-1])


def ngram_bits_per_byte(train: Iterable[str], evaluation: Iterable[str], order: int = 5) -> float:
    """Bits per byte (UTF-8) of the documents `evaluation` with their ends of text, by an n-gram model of `train`.

    Raises:
        ValueError: `train` or `evaluation` has no documents.
    """
    size = 0

    def counted() -> Iterator[str]:
        nonlocal size
        for text in evaluation:
            size += len(text.encode())
            yield text

    bits = train_ngram(train, order).bits(counted())
    if not size:
        raise ValueError("evaluation: there are no documents, or none has text")
    return float(bits.sum()) / size


def _smoothed(grams: np.ndarray, counts: np.ndarray) -> _Order:
    """
    Args:
        grams: (G,) sorted codes.
        counts: (G,) c of each.
    """
    n1, n2, n3, n4 = (int((counts == r).sum()) for r in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2) if n1 else 0.5  # Chen & Goodman's equation 17; small sets of grams may lack some counts
    discounts = np.array(
        [
            0.0,
            1.0 - 2.0 * y * n2 / n1 if n1 else y,
            2.0 - 3.0 * y * n3 / n2 if n2 else y,
            3.0 - 4.0 * y * n4 / n3 if n3 else y,
        ]
    )
    # The counts of small sets of grams may give 0 or less, and unseen symbols would have a probability of 0.
    discounts = np.clip(discounts, [0.0, 0.1, 0.1, 0.1], np.arange(4))
    discount = discounts[np.minimum(counts, 3)]
    contexts, first = np.unique(grams // SYMBOLS, return_index=True)
    totals = np.add.reduceat(counts, first)
    return _Order(
        grams,
        (counts - discount) / np.repeat(totals, np.diff(first, append=len(grams))),
        contexts,
        np.add.reduceat(discount, first) / totals,
    )


def _summed(grams: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different grams, sorted, and the sum of the counts of each."""
    order = np.argsort(grams, kind="stable")  # a merge sort is quick on sorted runs
    grams, counts = grams[order], counts[order]
    first = np.flatnonzero(np.diff(grams, prepend=-1))
    return grams[first], np.add.reduceat(counts, first)


def _looked_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, missing: float) -> np.ndarray:
    """The value of each wanted key among the sorted `keys`, or `missing`."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], missing)


def _blocks(documents: Iterable[str], order: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (code of the gram that ends in each symbol, number of its document) in blocks of about BLOCK symbols."""
    pieces: list[np.ndarray] = []
    numbers: list[int] = []
    size = 0
    for number, text in enumerate(documents):
        data = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
        symbols = np.concatenate([np.full(order - 1, END), data, [END]])
        for start in range(0, len(data) + 1, BLOCK):
            pieces.append(symbols[start : start + BLOCK + order - 1])
            numbers.append(number)
            size += len(pieces[-1])
            if size >= BLOCK:
                yield _codes(pieces, numbers, order)
                pieces, numbers, size = [], [], 0
    if pieces:
        yield _codes(pieces, numbers, order)


def _codes(pieces: list[np.ndarray], numbers: list[int], order: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(piece) for piece in pieces]) - (order - 1)
    symbols = np.concatenate(pieces)
    codes = np.zeros(len(symbols) - (order - 1), np.int64)
    for place in range(order):
        codes = codes * SYMBOLS + symbols[place : place + len(codes)]
    # Across the border of two pieces are order - 1 grams with symbols of both.
    number = np.repeat(np.arange(len(pieces)), lengths)
    return codes[np.arange(len(number)) + number * (order - 1)], np.array(numbers)[number]
