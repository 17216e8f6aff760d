"""Beam search with the states of windows and linear attention finds what it finds without any state."""

from typing import Any

import pytest
import torch
from torch import Tensor

from transloom.model.config import Attention, FeatureMap, Positions, TransformerConfig
from transloom.model.packing import Layout
from transloom.model.transformer import Transformer
from transloom.pipeline.generate.beam import BeamConfig, n_best_search

VOCAB, BOS, EOS = 17, 2, 3
SIZES = {"d_model": 16, "d_ff": 32, "num_heads": 4, "key_value_heads": 2, "encoder_layers": 2, "decoder_layers": 2}
KINDS: dict[str, dict[str, Any]] = {
    "window": {"attention": Attention.window, "window": 2},
    "global tokens": {"attention": Attention.window, "window": 2, "global_tokens": 1, "positions": Positions.rotary},
    "alibi": {"attention": Attention.window, "window": 3, "positions": Positions.alibi},
    "linear": {"attention": Attention.linear},
    "random features": {"attention": Attention.linear, "feature_map": FeatureMap.favor, "random_features": 7},
}


class WithoutState:
    """Reads the whole prefix of every hypothesis again at every step."""

    def __init__(self, model: Transformer, sources: list[Tensor]) -> None:
        self.model = model
        self.rows = [(source, torch.empty(0, dtype=torch.int64)) for source in sources]

    def step(self, tokens: Tensor) -> Tensor:
        pairs = zip(self.rows, tokens, strict=True)
        self.rows = [(source, torch.cat((prefix, token[None]))) for (source, prefix), token in pairs]
        last = []
        for source, prefix in self.rows:
            layouts = [Layout.of(torch.tensor([len(ids)])) for ids in (source, prefix)]
            last.append(self.model(source, layouts[0], prefix, layouts[1])[-1])
        return self.model.logits(torch.stack(last))

    def reorder(self, rows: Tensor, sentences: Tensor | None) -> None:
        self.rows = [self.rows[row] for row in rows.tolist()]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_beam_search_finds_the_same_with_and_without_a_state(kind: str) -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**SIZES, **KINDS[kind]), VOCAB).double().eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    sources = [torch.randint(4, VOCAB, (length,)) for length in (7, 3, 5)]
    limits, search = torch.tensor([9, 6, 8]), BeamConfig(beam=3)
    decoding = model.start_decoding(torch.cat(sources), Layout.of(torch.tensor([7, 3, 5])))
    found, expected = (
        [best for best, *_ in n_best_search(one, limits, search, BOS, EOS)]
        for one in (decoding, WithoutState(model, sources))
    )
    assert [hypothesis.tokens for hypothesis in found] == [hypothesis.tokens for hypothesis in expected]
    assert [hypothesis.score for hypothesis in found] == pytest.approx([one.score for one in expected])
    assert max(len(hypothesis.tokens) for hypothesis in found) > 3  # beyond the window
