import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from transloom.pipeline.data import ngram
from transloom.pipeline.data.ngram import END, SYMBOLS, ngram_bits_per_byte, train_ngram

TRAIN = ["the cat sat on the mat", "the hat is on the cat", "a bat", "", "käse\n\n" + "that at the hat " * 5]
OTHER = ["the bat sat on a hat", "ä", "", "zzz\x00", "the the the the"]


def grams(text, order):
    symbols = [END] * (order - 1) + list(text.encode()) + [END]
    return [tuple(symbols[i : i + order]) for i in range(len(symbols) - order + 1)]


def brute_force(train, order):
    """The formula of the module, by dictionaries: returns p(symbol, context of order - 1 symbols)."""
    counts = {order: Counter(gram for text in train for gram in grams(text, order))}
    for k in range(order - 1, 0, -1):
        counts[k] = Counter(gram[1:] for gram in counts[k + 1])
    discounts, followers = {}, {}
    for k, table in counts.items():
        n = {r: sum(c == r for c in table.values()) for r in (1, 2, 3, 4)}
        y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.5
        d = {0: 0.0}
        for r in (1, 2, 3):
            d[r] = min(max(r - (r + 1) * y * n[r + 1] / n[r] if n[r] else y, 0.1), r)
        discounts[k] = d
        followers[k] = defaultdict(list)
        for gram, count in table.items():
            followers[k][gram[:-1]].append(count)

    def probability(symbol, context):
        k = len(context) + 1
        below = probability(symbol, context[1:]) if context else 1 / SYMBOLS
        if context not in followers[k]:
            return below
        d, c = discounts[k], counts[k][(*context, symbol)]
        total = sum(followers[k][context])
        mass = sum(d[min(count, 3)] for count in followers[k][context])
        return (c - d[min(c, 3)]) / total + mass / total * below

    return probability


@pytest.mark.parametrize("order", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("block", [1 << 20, 7])
def test_the_arrays_give_what_the_formula_gives(order, block, monkeypatch):
    monkeypatch.setattr(ngram, "BLOCK", block)
    probability = brute_force(TRAIN, order)
    expected = [-sum(math.log2(probability(g[-1], g[:-1])) for g in grams(text, order)) for text in OTHER]
    np.testing.assert_allclose(train_ngram(TRAIN, order).bits(OTHER), expected, rtol=1e-9)
    size = sum(len(text.encode()) for text in OTHER)
    assert ngram_bits_per_byte(iter(TRAIN), iter(OTHER), order) == pytest.approx(sum(expected) / size)


@pytest.mark.parametrize("order", [1, 3, 5])
@pytest.mark.parametrize("train", [TRAIN, ["a"], ["ab" * 500], ["aabb" * 3, "ccc"]])
def test_probabilities_after_any_context_sum_to_one_and_none_is_zero(order, train):
    model = train_ngram(train, order)
    contexts = [gram[:-1] for text in [*train, "qu", "b\x00"] for gram in grams(text, order)][:40]
    for context in contexts:
        code = 0
        for symbol in context:
            code = code * SYMBOLS + symbol
        probabilities = model.probabilities(code * SYMBOLS + np.arange(SYMBOLS))
        assert probabilities.sum() == pytest.approx(1.0)
        assert probabilities.min() > 0.0


def test_a_text_seen_often_costs_little_and_a_text_of_noise_eight_bits_a_byte():
    assert ngram_bits_per_byte(["the cat sat on the mat. " * 400], ["the cat sat on the mat. " * 40]) < 0.15
    characters = [chr(c) for c in np.random.default_rng(0).integers(0, 128, 20_000)]
    assert ngram_bits_per_byte(["".join(characters[:10_000])], ["".join(characters[10_000:])]) > 6.9


def test_what_can_not_be_counted_is_refused():
    with pytest.raises(ValueError, match=r"^order:"):
        train_ngram(TRAIN, 8)
    with pytest.raises(ValueError, match=r"^documents:"):
        train_ngram([])
    with pytest.raises(ValueError, match=r"^evaluation:"):
        ngram_bits_per_byte(TRAIN, [])


def test_tinyshakespeare(corpora):
    text = (corpora / "lm-text/tinyshakespeare.txt").read_text()
    cut = int(len(text) * 0.9)
    assert ngram_bits_per_byte([text[:cut]], [text[cut:]]) == pytest.approx(2.253, abs=0.001)
