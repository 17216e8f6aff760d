"""What is measured is counted as it should be, for every system alike."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from transloom.model.flops import training_flops
from transloom.pipeline.bench.task import Kind
from transloom.pipeline.data.pairs import open_pairs
from transloom.pipeline.data.tokenizer import EOS_ID
from transloom.pipeline.gpu_check import training
from transloom.pipeline.gpu_check.random_corpus import LONGEST, write_random_shards
from transloom.pipeline.gpu_check.settings import training_size
from transloom.pipeline.gpu_check.training import measure_training

SIZE = training_size("base", "cpu")


@pytest.fixture(autouse=True)
def small_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 on a processor without it the full product takes seven seconds, six times in a measurement."""
    monkeypatch.setattr("transloom.pipeline.bench.training.MATMUL_SHAPE", (128, 128, 128))


def test_random_sentences_are_as_long_as_real_ones(tmp_path: Path) -> None:
    write_random_shards(tmp_path, 5000, 37_000, seed=1)
    pairs = open_pairs(tmp_path, "train")
    for lengths in (pairs.lengths_of("source"), pairs.lengths_of("target")):
        assert len(lengths) == 5000 and 25 < lengths.mean() < 30
        assert lengths.min() >= 3 and lengths.max() <= LONGEST
    assert np.corrcoef(pairs.lengths_of("source"), pairs.lengths_of("target"))[0, 1] > 0.9
    for i in (0, 17, 4999):
        ids = pairs.get("target", i)
        assert ids[-1] == EOS_ID and (ids[:-1] > EOS_ID).all() and ids.max() < 37_000
    assert len(np.unique(pairs.get("source", 0))) > 2


@pytest.mark.parametrize("kind", [Kind.ours, Kind.torch, Kind.marian])
def test_every_system_takes_the_same_steps(kind: Kind, tmp_path: Path) -> None:
    if kind is Kind.marian:
        pytest.importorskip("transformers")
    figures = measure_training(kind, SIZE, torch.device("cpu"), tmp_path).figures
    assert figures["system"] == kind.value and len(figures["rounds"]) == SIZE.rounds
    assert 0.8 * SIZE.batch.tokens < figures["target_tokens_per_step"] <= SIZE.batch.tokens
    assert figures["loss"] == pytest.approx(np.log(SIZE.vocab_size), rel=0.15)  # of random tokens, after a few steps
    one = figures["rounds"][0]
    flops = training_flops(SIZE.model, SIZE.vocab_size, one["source_tokens"], one["target_tokens"]) / one["seconds"]
    spread = figures["model_flops_per_second"]
    assert spread["least"] <= flops * 1.0001 and flops <= spread["most"] * 1.0001
    assert figures["share_of_matmul"] == spread["median"] / figures["matmul_flops_per_second"]["median"]
    # The process has been larger before, where other tests came first.
    assert figures["peak_bytes"] >= figures["imported_bytes"] > 0


def test_only_ours_has_a_goal_and_missing_it_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_matmul", lambda *_: 1e12)
    size = replace(SIZE, goal=1e12)
    ours = measure_training(Kind.ours, size, torch.device("cpu"), tmp_path)
    assert [target.is_met for target in ours.targets] == [False] and not ours.missed
    assert not measure_training(Kind.torch, size, torch.device("cpu"), tmp_path).targets
