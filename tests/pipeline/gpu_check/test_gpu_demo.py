"""The demo runs to its score, and what it leaves is translated by both searches."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from transloom.pipeline.gpu_check.decoding import measure_decoding
from transloom.pipeline.gpu_check.demo import read_test_set, run_demo
from transloom.pipeline.gpu_check.outcome import Outcome, Skipped
from transloom.pipeline.gpu_check.settings import decoding_size, demo_size

CPU = torch.device("cpu")
DEMO, DECODING = demo_size("cpu"), decoding_size("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def demo(folder: Path) -> Outcome:
    return run_demo(replace(DEMO, bleu=90.0), CPU, folder)


def test_it_trains_validates_and_scores(demo: Outcome, folder: Path) -> None:
    assert demo.figures["steps"] == DEMO.train.max_steps
    assert [one["step"] for one in demo.figures["validations"]] == [2, 4]
    assert "tok:13a" in demo.figures["signature"]
    sources, references = read_test_set(folder)
    assert len(sources) == len(references) == DEMO.corpus.held_out


def test_a_model_that_has_learnt_nothing_misses_the_goal(demo: Outcome) -> None:
    assert [target.what for target in demo.missed] == ["test BLEU"]


def test_both_searches_translate_with_its_weights(demo: Outcome, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    outcome = measure_decoding(replace(DECODING, goal=0.0), CPU, folder, tmp_path)
    figures = outcome.figures
    assert figures["sentences"] == DEMO.corpus.held_out and figures["beam"] == 5
    assert figures["ours"]["identical_to_ours_without_length_penalty"] == 1.0
    assert figures["ours_over_marian"] == pytest.approx(
        figures["ours"]["sentences_per_second"]["median"] / figures["Marian"]["sentences_per_second"]["median"]
    )


def test_without_the_demos_model_there_is_nothing_to_decode_with(tmp_path: Path) -> None:
    with pytest.raises(Skipped, match="no model"):
        measure_decoding(DECODING, CPU, tmp_path, tmp_path)
