"""What heads look at: which tokens each score counts, and heads whose attention is known."""

from typing import Any

import numpy as np
import pytest
import torch
from inside_toys import MARKS, decoder, pair_sample, text_sample, translator
from torch import Tensor

from transloom.model.attention import CrossAttention, SelfAttention
from transloom.model.config import Attention
from transloom.pipeline.inside.alignment import LexicalAligner
from transloom.pipeline.inside.heads import head_scores, self_kinds, strongest

WINDOW = {"attention": Attention.window, "window": 2}


def test_the_tokens_of_each_score() -> None:
    ids = torch.tensor([[1, 2, 9, 1, 2]])
    causal = torch.ones(1, 5, 5, dtype=torch.bool).tril()
    kinds = self_kinds(ids, causal, torch.from_numpy(MARKS))
    places = {name: [tuple(place) for place in kind[0].nonzero().tolist()] for name, kind in kinds.items()}
    assert places == {
        "previous": [(1, 0), (2, 1), (3, 2), (4, 3)],
        "itself": [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)],
        "first": [(1, 0), (2, 0), (3, 0), (4, 0)],
        "same": [(3, 0), (4, 1)],
        "punctuation": [(3, 2), (4, 2)],
        "induction": [(3, 1), (4, 2)],  # what followed the earlier 1 and the earlier 2
    }
    both = self_kinds(ids, torch.ones_like(causal), torch.from_numpy(MARKS))
    assert [tuple(place) for place in both["next"][0].nonzero().tolist()] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert [tuple(place) for place in both["induction"][0].nonzero().tolist()] == [(0, 4), (3, 1), (4, 2)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", [{}, WINDOW, {**WINDOW, "global_tokens": 1}])
def test_heads_that_look_at_all_tokens_alike_have_the_share_of_chance(causal: bool, kind: dict[str, Any]) -> None:
    model = decoder(causal, **kind)
    for layer in model.layers:
        torch.nn.init.zeros_(layer.self_attention.query_key_value.weight)
    (scores,) = head_scores(model, text_sample(), MARKS).values()
    assert scores.heads.keys() == scores.uniform.keys()
    assert ("next" in scores.heads) is not causal
    for name, values in scores.heads.items():
        assert values.shape == (2, 4)
        np.testing.assert_allclose(values, scores.uniform[name], rtol=1e-5)


def test_a_head_that_looks_at_the_token_before_has_all_of_that_score(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(self: SelfAttention, x: Tensor, grid: Any, causal: bool, state: object = None) -> Tensor:
        batch, length = grid.shape
        looks = torch.eye(length).repeat(batch, 4, 1, 1)
        looks[:, 1] = torch.eye(length).roll(-1, 1)  # head 2 looks at the token before
        return looks

    monkeypatch.setattr(SelfAttention, "weights", weights)
    scores = head_scores(decoder(), text_sample(), MARKS)["decoder"]
    np.testing.assert_allclose(scores.heads["previous"], [[0, 1, 0, 0]] * 2)
    np.testing.assert_allclose(scores.heads["itself"], [[1, 0, 1, 1]] * 2)
    assert strongest(scores.heads["previous"], 2) == [(1, 2, 1.0), (2, 2, 1.0)]
    # The second of two tokens between two punctuation marks looks at no mark, the first one does.
    assert 0 < scores.heads["punctuation"][0, 1] < 1 and scores.heads["punctuation"][0, 0] == 0


def test_cross_attention_is_compared_with_words_that_belong_together(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(self: CrossAttention, x: Tensor, memory: Tensor, target: Any, source: Any) -> Tensor:
        looks = torch.zeros(target.shape[0], 4, target.shape[1], source.shape[1])
        for head in range(4):
            looks[:, head, :, head] = 1.0  # head h looks at source token h
        return looks

    monkeypatch.setattr(CrossAttention, "weights", weights)
    # 4 is 8, 5 is 9 and 6 is 7.
    sources, targets = [[4, 5], [5, 6], [4, 6], [4], [5], [6]], [[9, 8], [9, 7], [7, 8], [8], [9], [7]]
    aligner = LexicalAligner([np.array(ids) for ids in sources], [np.array(ids) for ids in targets])
    scores = head_scores(translator(), pair_sample(), MARKS, aligner)
    assert set(scores) == {"encoder", "decoder", "cross"}
    # Places 0, 1 and 2 of the first pair, 0 and 1 of the second: the head of place 0 is right for 2 words of 5.
    np.testing.assert_allclose(scores["cross"].heads["aligned"], [[2 / 5, 2 / 5, 1 / 5, 0]])
    np.testing.assert_allclose(scores["cross"].heads["end"], [[0, 0, 3 / 7, 4 / 7]])
    assert scores["cross"].uniform["aligned"] == pytest.approx((3 / 4 + 2 / 3) / 5)


def test_alignments_follow_from_which_words_stand_together() -> None:
    random = np.random.default_rng(0)
    sources = [random.permutation(30)[: random.integers(3, 9)] for _ in range(400)]
    orders = [random.permutation(len(source)) for source in sources]
    targets = [100 - source[order] for source, order in zip(sources, orders, strict=True)]
    aligner = LexicalAligner(sources, targets)
    for source, target, order in zip(sources, targets, orders, strict=True):
        assert aligner.align(source, target).tolist() == order.tolist()
    # 60 was in no pair; 171 is beyond all target tokens, so that 0 and 171 have the key of 1 and 70.
    assert aligner.align(np.array([0, 3]), np.array([60, 171, 97])).tolist() == [-1, -1, 1]
