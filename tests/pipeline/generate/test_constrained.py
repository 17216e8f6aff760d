"""Search with terms that must be in the translation, against all translations that have them."""

import pytest
import torch
from table_decoding import BOS, EOS, VOCAB, TableDecoding, all_translations

from transloom.pipeline.generate.beam import BeamConfig, n_best_search
from transloom.pipeline.generate.constrained import Progress, Term, constrained_search

NO_WORDS = [False] * VOCAB  # every token is a word of its own
CONTINUES = [False, True, False, False]  # 1 goes on with the word before it


def search(seed: int, limits: list[int], terms: list[list[Term]], beam: int, continues: list[bool], n_best: int = 1):
    config = BeamConfig(beam=beam)
    return constrained_search(
        TableDecoding(seed, len(limits)), limits, terms, continues, config, BOS, EOS, n_best=n_best
    )


def has(tokens: list[int], term: Term, continues: list[bool]) -> bool:
    ends = [*tokens, EOS]
    places = range(len(tokens) - len(term) + 1)
    return any(tuple(tokens[i : i + len(term)]) == term and not continues[ends[i + len(term)]] for i in places)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("continues", [NO_WORDS, CONTINUES])
def test_wide_enough_the_search_finds_the_best_translation_that_has_the_terms(seed: int, continues: list[bool]) -> None:
    limits = [5, 4, 5]
    terms: list[list[Term]] = [[(0, 2)], [(1,), (2,)], [(0, 0, 1), (1, 2)]]
    lists = search(seed, limits, terms, VOCAB**5, continues, n_best=3)
    for sentence, hypotheses in enumerate(lists):
        every = all_translations(seed, sentence, limits[sentence], 0.6)
        fitting = [one for one in every if all(has(one[1], term, continues) for term in terms[sentence])][:3]
        assert [hypothesis.tokens for hypothesis in hypotheses] == [tokens for _, tokens, _ in fitting]
        assert hypotheses[0].score == pytest.approx(fitting[0][0], abs=1e-5)
        assert hypotheses[0].log_probability == pytest.approx(fitting[0][2], abs=1e-5)


@pytest.mark.parametrize("beam", [1, 2, 4])
def test_however_narrow_the_beam_every_term_is_there(beam: int) -> None:
    terms: list[list[Term]] = [[(2, 2, 0)], [(1,), (0, 2)], [(2,)]]
    for seed in range(10):
        for sentence, (best,) in enumerate(search(seed, [8, 8, 3], terms, beam, NO_WORDS)):
            assert all(has(best.tokens, term, NO_WORDS) for term in terms[sentence])


def test_without_terms_it_is_beam_search() -> None:
    for seed in range(5):
        limits = [4, 3]
        lists = n_best_search(TableDecoding(seed, 2), torch.tensor(limits), BeamConfig(beam=VOCAB**4), BOS, EOS)
        expected = [best for best, *_ in lists]
        results = search(seed, limits, [[], []], VOCAB**4, NO_WORDS)
        assert [best.tokens for (best,) in results] == [hypothesis.tokens for hypothesis in expected]


def test_the_progress_with_a_term_that_begins_again_within_itself() -> None:
    terms: list[Term] = [(0, 0, 1)]
    progress = Progress((0,))
    for token, matched in ((0, 1), (0, 2), (0, 2), (2, 0), (0, 1), (0, 2), (1, 3)):
        progress = progress.after(token, terms, continues_word=False)
        assert progress.matched == (matched,)
    assert progress.met == {0}
    assert progress.after(2, terms, continues_word=True).met == set(), "the word went on: another word"
    assert progress.after(2, terms, continues_word=False).after(1, terms, continues_word=True).met == {0}
