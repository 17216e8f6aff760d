"""Laws of beam search, on a language model small enough to enumerate."""

import pytest
import torch
from table_decoding import BOS, EOS, VOCAB, TableDecoding, all_translations
from torch import Tensor

from transloom.pipeline.generate.beam import BeamConfig, n_best_search


def search(seed: int, max_lengths: list[int], config: BeamConfig):
    decoding = TableDecoding(seed, len(max_lengths))
    return [best for best, *_ in n_best_search(decoding, torch.tensor(max_lengths), config, BOS, EOS)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
def test_wide_enough_a_beam_equals_exhaustive_search(seed: int, alpha: float) -> None:
    max_lengths = [4, 2, 3]
    found = search(seed, max_lengths, BeamConfig(beam=VOCAB**4, length_penalty=alpha))
    for sentence, (hypothesis, max_length) in enumerate(zip(found, max_lengths, strict=True)):
        score, tokens, log_probability = all_translations(seed, sentence, max_length, alpha)[0]
        assert hypothesis.tokens == tokens
        assert hypothesis.score == pytest.approx(score, abs=1e-5)
        assert hypothesis.log_probability == pytest.approx(log_probability, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_the_n_best_are_the_first_of_all_translations(seed: int, alpha: float) -> None:
    limits = [4, 1, 3]
    config = BeamConfig(beam=VOCAB**4, length_penalty=alpha)
    lists = n_best_search(TableDecoding(seed, 3), torch.tensor(limits), config, BOS, EOS, n_best=7)
    for sentence, (hypotheses, limit) in enumerate(zip(lists, limits, strict=True)):
        best = all_translations(seed, sentence, limit, alpha)[:7]
        assert [hypothesis.tokens for hypothesis in hypotheses] == [tokens for _, tokens, _ in best]
        for hypothesis, (score, _, log_probability) in zip(hypotheses, best, strict=True):
            assert hypothesis.score == pytest.approx(score, abs=1e-5)
            assert hypothesis.log_probability == pytest.approx(log_probability, abs=1e-5)


@pytest.mark.parametrize("beam", [1, 3])
def test_the_first_of_the_n_best_is_the_best_where_the_beam_is_narrow(beam: int) -> None:
    limits = [6, 3, 8]
    config = BeamConfig(beam=beam)
    lists = n_best_search(TableDecoding(5, 3), torch.tensor(limits), config, BOS, EOS, n_best=beam)
    for (first, *_), best in zip(lists, search(5, limits, config), strict=True):
        assert first.score >= best.score - 1e-6  # a search for more goes on for longer


@pytest.mark.parametrize("seed", range(4))
def test_a_forced_prefix_comes_first_and_counts(seed: int) -> None:
    limits, prefixes = [4, 3, 4], [[1, 0], [], [2]]
    config = BeamConfig(beam=VOCAB**4)
    lists = n_best_search(TableDecoding(seed, 3), torch.tensor(limits), config, BOS, EOS, 3, prefixes)
    for sentence, hypotheses in enumerate(lists):
        best = all_translations(seed, sentence, limits[sentence], 0.6, prefixes[sentence])[:3]
        assert [hypothesis.tokens for hypothesis in hypotheses] == [tokens for _, tokens, _ in best]
        assert hypotheses[0].log_probability == pytest.approx(best[0][2], abs=1e-5)


def test_a_narrow_beam_keeps_to_a_prefix() -> None:
    for seed in range(5):
        config = BeamConfig(beam=2)
        ((best,),) = n_best_search(TableDecoding(seed, 1), torch.tensor([7]), config, BOS, EOS, 1, [[0, 1, 1, 0]])
        assert best.tokens[:4] == [0, 1, 1, 0]


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

        ((alone,),) = n_best_search(One(3, 1), torch.tensor([limit]), BeamConfig(beam=beam), BOS, EOS)
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
