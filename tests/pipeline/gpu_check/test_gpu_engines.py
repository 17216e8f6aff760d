"""Engines that learn alike pass, and one that does not is noticed; a loss scale that does not give way, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transloom.pipeline.files import read_json
from transloom.pipeline.gpu_check import engines
from transloom.pipeline.gpu_check.engines import check_loss_scale, check_zero
from transloom.pipeline.gpu_check.settings import engine_size
from transloom.pipeline.train.engine import EngineConfig, EngineName, make_engine
from transloom.pipeline.train.optimizer import LossScale, MasterAdam

CPU = torch.device("cpu")
SIZE = engine_size("cpu")
ROOT = Path(__file__).resolve().parents[3]


def stand_in(monkeypatch: pytest.MonkeyPatch, spoil=lambda engine: None) -> list[int]:
    """Plain torch in DeepSpeed's place, which takes seconds to import and leaves its traces in the process."""
    stages = []

    def make(module, optimizer, precision, config, device):
        engine = make_engine(module, optimizer, precision, EngineConfig(EngineName.torch), device)
        if config.name is EngineName.deepspeed:
            stages.append(config.zero_stage)
            spoil(engine)
        return engine

    monkeypatch.setattr(engines, "make_engine", make)
    return stages


def test_the_same_engine_has_no_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = stand_in(monkeypatch)
    outcome = check_zero(2, SIZE, CPU, tmp_path)
    assert stages == [2] and not outcome.missed
    assert outcome.figures["distance_of_weights"] == 0.0
    losses = outcome.figures["losses"]["deepspeed"]
    assert len(losses) == SIZE.updates and losses[-1] < 0.9 * losses[0]


def without_the_last(engine) -> None:
    """Loses the last micro-batch of every step."""
    forward_backward = engine.forward_backward
    engine.forward_backward = lambda batch, scale, last: forward_backward(
        batch, scale=0.0 if last else scale, last=last
    )


def halved(engine) -> None:
    """A mean where a sum belongs; Adam alone would hardly show it."""
    forward_backward = engine.forward_backward
    engine.forward_backward = lambda batch, scale, last: forward_backward(batch, scale=scale / 2, last=last)


def idle(engine) -> None:
    """Never updates."""
    step = engine.step
    engine.step = lambda rate: step(0.0)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [(without_the_last, "moved"), (halved, "norms"), (idle, "last loss / first")],
)
def test_another_engine_is_noticed(spoil, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, spoil)
    assert any(what in target.what for target in check_zero(1, SIZE, CPU, tmp_path).missed)


def test_an_overflow_halves_the_scale_and_fp16_trains_on(tmp_path: Path) -> None:
    outcome = check_loss_scale(SIZE, CPU, tmp_path)
    assert not outcome.missed
    assert outcome.figures["loss_scales"][:2] == [2.0**16, 2.0**15]
    assert outcome.figures["changed_by_overflow"] == 0 and outcome.figures["updates"] == SIZE.updates


def test_a_scale_that_stays_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "update", lambda scale, overflowed: None)
    assert [target.what for target in check_loss_scale(SIZE, CPU, tmp_path).missed] == ["loss scale after / before"]


def test_weights_that_an_overflow_changes_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = MasterAdam.step

    def careless(optimizer, closure=None) -> None:
        step(optimizer)
        if optimizer.result.skipped:
            optimizer.masters.add_(1.0)

    monkeypatch.setattr(MasterAdam, "step", careless)
    assert "tensors that it changed" in {target.what for target in check_loss_scale(SIZE, CPU, tmp_path).missed}


@pytest.mark.slow
def test_zero_3_itself_in_a_process_of_its_own(tmp_path: Path) -> None:
    words = ["part=zero3", f"answer={tmp_path / 'zero3.json'}", f"work={tmp_path}", "device=cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "transloom.jobs.gpu_check", *words], check=True, env=environment, capture_output=True
    )
    record = read_json(tmp_path / "zero3.json")
    assert record["status"] == "passed", record["why"]
    assert record["figures"]["losses"]["deepspeed"][0] == pytest.approx(record["figures"]["losses"]["torch"][0], 1e-3)
