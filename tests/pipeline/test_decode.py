"""Laws of beam search, on a language model small enough to enumerate."""

import itertools

import pytest
import torch
from torch import Tensor

from transloom.pipeline.generate.beam import BeamConfig, beam_search, length_penalty

VOCAB, BOS, EOS = 4, 2, 3


class TableDecoding:
    """Next-token logits looked up by (sentence, whole prefix): any model that a search could meet."""

    def __init__(self, seed: int, sentences: int) -> None:
        self.seed = seed
        self.prefixes: list[tuple[int, tuple[int, ...]]] = [(i, ()) for i in range(sentences)]

    def logits(self, sentence: int, prefix: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, sentence, prefix)) % 2**31)
        return torch.randn(VOCAB, generator=generator) * 2

    def step(self, tokens: Tensor) -> Tensor:
        pairs = zip(self.prefixes, tokens.tolist(), strict=True)
        self.prefixes = [(sentence, (*prefix, token)) for (sentence, prefix), token in pairs]
        return torch.stack([self.logits(*one) for one in self.prefixes])

    def reorder(self, rows: Tensor, sentences: Tensor | None) -> None:
        self.prefixes = [self.prefixes[row] for row in rows.tolist()]


def search(seed: int, max_lengths: list[int], config: BeamConfig):
    decoding = TableDecoding(seed, len(max_lengths))
    return beam_search(decoding, torch.tensor(max_lengths), config, BOS, EOS)


def exhaustive(seed: int, sentence: int, max_length: int, alpha: float) -> tuple[list[int], float]:
    """Scores every sequence that ends in </s> within max_length tokens."""
    model = TableDecoding(seed, 1)
    found: list[tuple[float, list[int]]] = []
    words = [token for token in range(VOCAB) if token != EOS]
    for length in range(1, max_length + 1):
        for said in itertools.product(words, repeat=length - 1):
            total = sum(
                model.logits(sentence, (BOS, *said[:i])).log_softmax(-1)[token].item()
                for i, token in enumerate((*said, EOS))
            )
            found.append((total / length_penalty(length, alpha), list(said)))
    score, tokens = max(found)
    return tokens, score


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
def test_wide_enough_a_beam_equals_exhaustive_search(seed: int, alpha: float) -> None:
    max_lengths = [4, 2, 3]
    found = search(seed, max_lengths, BeamConfig(beam=VOCAB**4, length_penalty=alpha))
    for sentence, (hypothesis, max_length) in enumerate(zip(found, max_lengths, strict=True)):
        tokens, score = exhaustive(seed, sentence, max_length, alpha)
        assert hypothesis.tokens == tokens
        assert hypothesis.score == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_a_beam_of_one_is_greedy(seed: int) -> None:
    (found,) = search(seed, [8], BeamConfig(beam=1))
    model, said = TableDecoding(seed, 1), []
    while len(said) < 7 and (token := int(model.logits(0, (BOS, *said)).argmax())) != EOS:
        said.append(token)
    assert found.tokens == said


@pytest.mark.parametrize("beam", [1, 2, 3])
def test_a_sentence_does_not_depend_on_its_neighbours(beam: int) -> None:
    limits = [5, 1, 9, 3, 7]
    together = search(3, limits, BeamConfig(beam=beam))

    for sentence, limit in enumerate(limits):

        class One(TableDecoding):
            def logits(self, sentence: int, prefix: tuple[int, ...], which: int = sentence) -> Tensor:
                return super().logits(which, prefix)

        (alone,) = beam_search(One(3, 1), torch.tensor([limit]), BeamConfig(beam=beam), BOS, EOS)
        assert alone == together[sentence]


def test_a_wider_beam_scores_no_worse_on_the_whole() -> None:
    scores = [
        sum(one.score for seed in range(20) for one in search(seed, [6, 6], BeamConfig(beam=beam)))
        for beam in (1, 2, 8)
    ]
    assert scores[0] < scores[1] < scores[2]


def test_the_limit_counts_the_end() -> None:
    for seed in range(10):
        (found,) = search(seed, [1], BeamConfig(beam=2))
        assert found.tokens == []
        (found,) = search(seed, [3], BeamConfig(beam=2))
        assert len(found.tokens) <= 2


def test_a_longer_penalty_makes_longer_translations() -> None:
    def total(alpha: float) -> int:
        config = BeamConfig(beam=8, length_penalty=alpha)
        return sum(len(one.tokens) for seed in range(20) for one in search(seed, [8], config))

    assert total(0.0) < total(1.0) < total(3.0)


@pytest.mark.parametrize("field", ["beam", "batch_sentences", "length_penalty", "extra_tokens"])
def test_impossible_settings_are_refused_by_name(field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        BeamConfig(**{field: -1})


def test_every_search_has_a_name_of_its_own():
    others = [BeamConfig(), BeamConfig(beam=8), BeamConfig(beam=1, length_penalty=0.0), BeamConfig(extra_tokens=9)]
    others.append(BeamConfig(batch_sentences=32))
    assert [one.label() for one in others] == [
        *("beam4-penalty0.6", "beam8-penalty0.6", "beam1-penalty0.0", "beam4-penalty0.6-extra9"),
        "beam4-penalty0.6-batch32",
    ]
    assert len({one.in_words() for one in others}) == len(others)
