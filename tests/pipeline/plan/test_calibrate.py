"""Measuring this machine: the sentences it is measured on, and a whole small calibration."""

from pathlib import Path

import numpy as np
import pytest

from transloom.model.config import TransformerConfig
from transloom.pipeline.data.batches import BatchConfig
from transloom.pipeline.data.pairs import pair_steps
from transloom.pipeline.data.tokenizer import EOS_ID
from transloom.pipeline.plan import calibrate as calibration
from transloom.pipeline.plan.calibrate import calibrate
from transloom.pipeline.plan.probe import Probe, RandomWords
from transloom.pipeline.plan.volume import random_lengths
from transloom.pipeline.train.optimizer import OptimizerConfig, Precision, PrecisionConfig

SHAPE = TransformerConfig(d_model=64, d_ff=128, num_heads=2, encoder_layers=1, decoder_layers=1)


def test_random_pairs_are_as_long_as_a_corpuss() -> None:
    pairs = RandomWords((random_lengths(20.0, 100), random_lengths(25.0, 100)), 500)
    assert pairs.lengths[:, 0].mean() == pytest.approx(20, rel=0.03)
    assert pairs.lengths[:, 1].mean() == pytest.approx(25, rel=0.03)
    assert np.corrcoef(pairs.lengths[:, 0], pairs.lengths[:, 1])[0, 1] > 0.9
    assert min(pairs.lengths[:, 0]) >= 2 and max(pairs.lengths[:, 1]) <= 100
    step = next(pair_steps(pairs, BatchConfig(800, 400), 1, rank=0, world_size=1))  # type: ignore[arg-type]
    assert step.batches[0].source[: step.batches[0].source_tokens].max() < 500
    assert len(pairs.get("source", 3)) == pairs.lengths[:, 0][3] and pairs.get("source", 3)[-1] == EOS_ID


@pytest.mark.slow
def test_a_small_model_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "WARM_UP_SECONDS", 0.2)
    monkeypatch.setattr(calibration, "TURN_SECONDS", 0.2)
    said: list[str] = []
    probe = Probe(
        model=SHAPE,
        vocab_size=500,
        batch=BatchConfig(512, 256),
        optimizer=OptimizerConfig(),
        precision=PrecisionConfig(Precision.fp32),
        label_smoothing=0.1,
        seed=1,
        shards=None,
        lengths=(random_lengths(12.0, 40), random_lengths(12.0, 40)),
        members=1,
        folder=str(tmp_path / "outputs"),
    )
    found = calibrate(probe, 2, 120_000, {"OMP_NUM_THREADS": "1"}, lambda what, done, total: said.append(what))
    assert found.workers == 2 and found.micro_batches >= 2 * calibration.LEAST_WARM_UP
    assert 1e8 < found.flops_together < 1e12 and 1e8 < found.flops_alone < 1e12
    assert found.link is not None and found.link > 1e6
    assert found.latency is not None and 0 < found.latency < 0.1
    assert 0 < found.update_seconds < 1
    assert 1e7 < found.training_bytes < 2e9 and found.checkpoint_seconds > 0
    assert "measuring" in said
    assert not list((tmp_path / "outputs").iterdir())  # nothing is left behind
