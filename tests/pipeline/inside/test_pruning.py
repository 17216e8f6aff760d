"""Heads taken out of a model: what a head writes, which one goes first, and that all come back."""

from typing import Any

import numpy as np
import pytest
import torch
from inside_toys import decoder, pair_sample, text_sample, translator

from transloom.model.recurrent_decoder import RecurrentDecoder, RecurrentDecoderConfig
from transloom.pipeline.errors import UserError
from transloom.pipeline.inside.examples import loss_of, plain_objective
from transloom.pipeline.inside.prune import CANDIDATES, Head, _cheapest, heads_of, parse_heads, prune, without


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def make(head: str) -> Head:
    stack, place = head.split()
    layer, number = map(int, place.split("."))
    return Head(stack, layer, number)


def test_a_model_without_any_head_reads_each_token_alone() -> None:
    model, sample = decoder(), text_sample()
    before = state(model)
    ((batch, _),) = list(sample.batches())
    with without(model, heads_of(model)), torch.inference_mode():
        hidden = model(batch.tokens, batch.layout)
        shuffled = batch.tokens.clone()
        shuffled[batch.layout.positions == 0] = 7  # all texts begin with another token
        changed = model(shuffled, batch.layout)
    same = batch.layout.positions > 0
    torch.testing.assert_close(hidden[same], changed[same])
    with torch.inference_mode():
        assert not torch.allclose(model(batch.tokens, batch.layout)[same], model(shuffled, batch.layout)[same])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_cheapest_head_goes_first_and_all_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transloom.pipeline.inside.prune.CANDIDATES", 100)  # all are tried
    model, sample = translator(), pair_sample()
    before, heads = state(model), heads_of(model, "encoder")
    objective = plain_objective(sample.task, model)
    batches = [batch for batch, _ in sample.batches()]
    points = list(prune(model, sample, heads, 3, lambda changed: {"score": loss_of(objective, batches)}))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [point.left for point in points] == list(range(8, -1, -1))
    assert {point.head for point in points} == {None, *heads}
    assert [bool(point.scores) for point in points] == [True, False, False, False, True, False, False, False, True]
    gone: list[Head] = []
    for point in points[1:]:
        costs = {}
        for head in set(heads) - set(gone):
            with without(model, [*gone, head]):
                costs[head] = loss_of(objective, batches)
        assert point.head is not None and point.loss == pytest.approx(costs[point.head], abs=1e-6)
        assert point.loss == pytest.approx(min(costs.values()), abs=1e-6)
        gone.append(point.head)
    assert points[-1].scores["score"] == pytest.approx(points[-1].loss, abs=1e-6)


def test_the_estimate_leaves_the_cheapest_head_among_the_candidates() -> None:
    model, sample = translator(), pair_sample()
    heads = heads_of(model)
    objective = plain_objective(sample.task, model)
    batches = [batch for batch, _ in sample.batches()]
    costs = {}
    for head in heads:
        with without(model, [head]):
            costs[head] = loss_of(objective, batches)
    candidates = _cheapest(model, objective, batches, heads)
    assert len(candidates) == CANDIDATES and min(costs, key=costs.__getitem__) in candidates
    assert all(parameter.grad is None for parameter in model.parameters())


def test_heads_by_name() -> None:
    assert parse_heads("1.2,2.4", decoder()) == [make("decoder 1.2"), make("decoder 2.4")]
    assert parse_heads("encoder.2.1, cross.1.4", translator()) == [make("encoder 2.1"), make("cross 1.4")]
    for text, model in (("3.1", decoder()), ("1", decoder()), ("1.2", translator()), ("x.y", decoder())):
        with pytest.raises(UserError, match=r"^without="):
            parse_heads(text, model)
    with pytest.raises(UserError, match=r"^stack="):
        heads_of(decoder(), "cross")
    with pytest.raises(UserError, match="recurrent"):
        heads_of(RecurrentDecoder(RecurrentDecoderConfig(8, 1), 9))
    assert len(heads_of(translator())) == 16 and np.unique([head.stack for head in heads_of(translator())]).size == 3
