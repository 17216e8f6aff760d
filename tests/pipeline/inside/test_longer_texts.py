"""Models read at 1, 2 and 4 times their length."""

from typing import Any

import numpy as np
import pytest
import torch
from inside_toys import Rows

from transloom.model.config import Attention, DecoderConfig, Positions
from transloom.model.decoder_only import DecoderOnly
from transloom.model.packing import Layout
from transloom.pipeline.errors import UserError
from transloom.pipeline.inside.positions import extrapolate

VOCAB = 12


def make(positions: Positions, **settings: Any) -> DecoderOnly:
    torch.manual_seed(0)
    shape = DecoderConfig(1, 16, 16, 2, dropout=0.0, max_positions=16, positions=positions, **settings)
    return DecoderOnly(shape, VOCAB).eval()


def documents(*lengths: int) -> Rows:
    random = np.random.default_rng(1)
    return Rows(text=[random.integers(0, VOCAB, length).tolist() for length in lengths])


def test_all_tokens_are_predicted_at_each_length_by_the_same_weights() -> None:
    model, texts = make(Positions.rotary), documents(70, 30, 65)
    results = extrapolate(model, texts, 10)
    assert [result.length for result in results] == [16, 32, 64]
    nats = []
    for row in (0, 2):  # the texts of more than 64 tokens
        text = torch.tensor(texts.get("text", row)[:65])
        for start in range(0, 64, 16):
            hidden = model(text[start : start + 16], Layout.of(torch.tensor([16])))
            labels = text[start + 1 : start + 17]
            nats.append(torch.nn.functional.cross_entropy(hidden @ model.output_weight.T, labels))
    assert results[0].loss == pytest.approx(float(torch.stack(nats).mean().detach()), rel=1e-5)
    assert len({result.loss for result in results}) == 3


def test_what_sees_itself_alone_is_the_same_at_every_length() -> None:
    model = make(Positions.rotary, attention=Attention.window, window=1)
    results = extrapolate(model, documents(70, 80), 10)
    assert results[1].loss == pytest.approx(results[0].loss) and results[2].loss == pytest.approx(results[0].loss)


def test_learned_positions_end_at_their_length() -> None:
    results = extrapolate(make(Positions.learned), documents(70), 10)
    assert results[0].loss is not None and [result.loss for result in results[1:]] == [None, None]


def test_short_documents_are_refused() -> None:
    with pytest.raises(UserError, match="65 tokens"):
        extrapolate(make(Positions.alibi), documents(64, 20), 10)
