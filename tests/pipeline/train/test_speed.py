"""Speed by sentence length: whole steps are taken, and every token is real."""

import time

import pytest
import torch

from transloom.model.config import RecurrentConfig, TransformerConfig
from transloom.pipeline.data.pairs import collate_pairs
from transloom.pipeline.train.optimizer import Precision, PrecisionConfig
from transloom.pipeline.train.speed import ROUNDS, speed_by_length

MODELS = {
    "transformer": TransformerConfig(d_model=16, d_ff=32, num_heads=2, encoder_layers=1, decoder_layers=1),
    "lstm": RecurrentConfig(d_model=16, encoder_layers=1, decoder_layers=1),
}


def test_a_speed_is_tokens_over_the_seconds_of_a_step() -> None:
    started_at = time.perf_counter()
    speeds = speed_by_length(
        MODELS, [4, 8], tokens=64, vocab_size=50, precision=PrecisionConfig(Precision.fp32), device=torch.device("cpu")
    )
    elapsed = time.perf_counter() - started_at
    assert list(speeds) == list(MODELS)
    for values in speeds.values():
        assert len(values) == 2
        # Half the measured steps were no faster than their median, and all of them lie within the time it took.
        assert all(64 / speed * (ROUNDS // 2 + 1) < elapsed for speed in values)


def test_as_many_tokens_at_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def counted(pairs, indices):
        seen.append(sum(len(pairs.get("source", i)) for i in indices))
        return collate_pairs(pairs, indices)

    monkeypatch.setattr("transloom.pipeline.train.speed.collate_pairs", counted)
    settings = {"vocab_size": 50, "precision": PrecisionConfig(Precision.fp32), "device": torch.device("cpu")}
    speed_by_length(MODELS, [4, 8, 16], tokens=64, **settings)
    assert seen == [64, 64, 64]
