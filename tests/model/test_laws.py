"""Laws of both models, the Transformer and the attentional LSTM: what must hold whatever their weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from packed import VOCAB, make_recurrent, make_transformer, pack, run, sentences

from transloom.model.config import Activation, Attention, FeatureMap, Norm, Normalization, Positions
from transloom.model.recurrent import Recurrent
from transloom.model.transformer import Transformer

Model = Transformer | Recurrent
MODERN: dict[str, Any] = {
    "normalization": Normalization.rms,
    "activation": Activation.swiglu,
    "key_value_heads": 2,
    "bias": False,
}
MODELS = {
    **{
        f"{norm.value}-norm, {positions.value}": partial(make_transformer, norm, positions)
        for norm in Norm
        for positions in Positions
    },
    "d_k, d_v": partial(make_transformer, d_k=3, d_v=5),
    "d_k, d_v, rotary": partial(make_transformer, positions=Positions.rotary, d_k=6, d_v=5),
    "swiglu": partial(make_transformer, activation=Activation.swiglu),
    "gelu": partial(make_transformer, activation=Activation.gelu),
    "rms": partial(make_transformer, normalization=Normalization.rms),
    "grouped queries": partial(make_transformer, key_value_heads=2),
    "one head of keys": partial(make_transformer, key_value_heads=1, d_k=3, d_v=5),
    "modern": partial(make_transformer, Norm.pre, Positions.rotary, **MODERN),
    "window": partial(make_transformer, attention=Attention.window, window=3),
    "window, global tokens": partial(
        make_transformer, Norm.pre, Positions.rotary, attention=Attention.window, window=2, global_tokens=2, **MODERN
    ),
    "window, alibi": partial(
        make_transformer, positions=Positions.alibi, attention=Attention.window, window=3, global_tokens=1, d_k=3, d_v=5
    ),
    "linear": partial(make_transformer, attention=Attention.linear, d_k=3, d_v=5),
    "random features": partial(
        make_transformer,
        Norm.pre,
        Positions.rotary,
        attention=Attention.linear,
        feature_map=FeatureMap.favor,
        random_features=11,
        **MODERN,
    ),
    "lstm, 1 and 1 layers": partial(make_recurrent, 1, 1),
    "lstm, 2 and 3 layers": partial(make_recurrent, 2, 3),
}
each_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
Make = Callable[[], Model]


def another(token: torch.Tensor) -> torch.Tensor:
    return 4 + (token - 3) % (VOCAB - 4)


@each_model
def test_packing_and_padding_change_nothing(make: Make) -> None:
    model = make()
    sources, targets = sentences(5, 9, 1, 7), sentences(8, 2, 6, 1, seed=1)
    together = run(model, sources, targets)
    for source, target, among_others in zip(sources, targets, together, strict=True):
        torch.testing.assert_close(among_others, run(model, [source], [target])[0], rtol=0, atol=1e-12)


@each_model
def test_gradients_do_not_depend_on_the_packing(make: Make) -> None:
    model = make()
    sources, targets = sentences(5, 9, 3), sentences(8, 2, 6, seed=1)
    together = torch.autograd.grad(sum(p.pow(2).sum() for p in run(model, sources, targets)), list(model.parameters()))
    alone_sum = sum(run(model, [s], [t])[0].pow(2).sum() for s, t in zip(sources, targets, strict=True))
    for one, other in zip(together, torch.autograd.grad(alone_sum, list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@each_model
def test_a_future_token_never_changes_the_past(make: Make) -> None:
    model = make()
    sources, (target,) = sentences(5), sentences(8, seed=1)
    before = run(model, sources, [target])[0]
    for position in range(1, 8):
        changed = target.clone()
        changed[position] = another(target[position])
        after = run(model, sources, [changed])[0]
        assert torch.equal(before[:position], after[:position])
        assert not torch.allclose(before[position:], after[position:])


@each_model
def test_every_source_token_matters_to_every_position(make: Make) -> None:
    model = make()
    (source,), targets = sentences(6), sentences(4, seed=1)
    before = run(model, [source], targets)[0]
    for position in range(6):
        changed = source.clone()
        changed[position] = another(source[position])
        difference = (before - run(model, [changed], targets)[0]).abs().amax(1)
        assert (difference > 1e-9).all()


@each_model
def test_cached_decoding_equals_uncached(make: Make) -> None:
    model = make()
    sources = sentences(5, 9, 2)
    targets = torch.stack(sentences(20, 20, 20, seed=1))  # long enough for the cache to grow
    decoding = model.start_decoding(*pack(sources))
    stepped = torch.stack([decoding.step(targets[:, t]) for t in range(20)], dim=1)
    whole = torch.stack(run(model, sources, list(targets))) @ model.embedding.weight.T
    torch.testing.assert_close(stepped, whole, rtol=0, atol=1e-12)


@each_model
def test_reordered_hypotheses_go_on_from_their_parents(make: Make) -> None:
    model = make()
    sources = sentences(5, 9)
    prefixes = torch.stack(sentences(3, 3, 3, 3, seed=1))  # two hypotheses for each of the two sentences
    nexts = torch.tensor([7, 8])
    decoding = model.start_decoding(*pack(sources))
    decoding.reorder(torch.tensor([0, 0, 1, 1]), None)  # nothing fed yet: nothing to reorder
    for t in range(3):
        decoding.step(prefixes[:, t])
    rows = torch.tensor([3, 2])  # the first sentence is done; the second's two change places
    decoding.reorder(rows, torch.tensor([1]))
    stepped = decoding.step(nexts)
    targets = [torch.cat((prefixes[row], nexts[i : i + 1])) for i, row in enumerate(rows)]
    whole = torch.stack([out[-1] for out in run(model, [sources[1], sources[1]], targets)])
    torch.testing.assert_close(stepped, whole @ model.embedding.weight.T, rtol=0, atol=1e-12)
