"""What made-up turns amount to, and that it can be drawn."""

import json
from pathlib import Path

import pytest

from transloom.model.config import TransformerConfig
from transloom.model.flops import training_flops
from transloom.pipeline.bench.picture import draw_bench
from transloom.pipeline.bench.report import (
    BARE,
    CONTROL,
    MARIAN,
    TWO,
    ZERO0,
    ZERO1,
    Ratio,
    Spread,
    summarise_training,
    training_ratios,
)
from transloom.pipeline.bench.task import Ready
from transloom.pipeline.bench.turns import Rounds, Turn

SHAPE = TransformerConfig(d_model=32, d_ff=64, num_heads=4, encoder_layers=1, decoder_layers=2)


def turn(seconds: float, peak: int = 100, gpu_peak: int = 0, steps: int = 10) -> Turn:
    return Turn(steps, seconds, 900, 1000, 5.0 - steps / 100, 1.5 * seconds, 0.5 * seconds, 0.0, peak, gpu_peak)


def rounds(**changes: list[Turn]) -> Rounds:
    turns = {
        BARE: [turn(1.0, 50), turn(2.0, 60), turn(1.0, 60, steps=30)],
        ZERO0: [turn(1.0)] * 3,
        ZERO1: [turn(1.25)] * 3,
        TWO: [turn(1.5)] * 3,
        CONTROL: [turn(3.0, 80), turn(6.0, 80), turn(2.0, 80)],
        MARIAN: [turn(2.0)] * 3,
    }
    return Rounds({**turns, **changes}, [2e9, 1e9, 3e9])


def ratio_of(found: list[Ratio], *words: str) -> Ratio:
    (one,) = [ratio for ratio in found if all(word in ratio.what for word in words)]
    return one


def test_the_ratios_are_those_of_medians_with_the_spread_of_the_rounds() -> None:
    found = training_ratios(rounds())
    one = ratio_of(found, f"{BARE} / {CONTROL}", "tokens")
    assert (one.value, one.spread, one.goal, one.is_met) == (3.0, Spread(3.0, 2.0, 3.0), 2.5, True)
    one = ratio_of(found, "best of the others")
    assert MARIAN in one.what and (one.value, one.is_met) == (2.0, True)
    assert ratio_of(found, f"{ZERO0} / {BARE}").value == 1.0
    one = ratio_of(found, f"{ZERO1} / {BARE}")
    assert (one.value, one.goal, one.is_met) == (0.8, 0.93, False)
    one = ratio_of(found, TWO)
    assert one.value == pytest.approx(1.25 / 1.5) and not one.is_met
    one = ratio_of(found, "memory")
    assert (one.value, one.goal, one.is_met) == (0.75, 0.7, False)
    assert json.loads(json.dumps(one.as_dict()))["is_met"] is False


def test_fp32_has_targets_of_its_own() -> None:
    found = training_ratios(rounds(), is_fp32=True)
    assert ratio_of(found, "best of the others").goal == ratio_of(found, f"{BARE} / {CONTROL}", "tokens").goal == 1.25
    assert ratio_of(found, f"{ZERO0} / {BARE}").goal == 0.97


def test_who_is_not_there_is_in_no_ratio() -> None:
    full = rounds()
    turns = {name: full.turns[name] for name in (BARE, CONTROL)}
    found = training_ratios(Rounds(turns, full.matmul))
    assert len(found) == 3 and CONTROL in ratio_of(found, "best of the others").what


def test_on_a_gpu_its_memory_counts() -> None:
    on_gpu = {BARE: [turn(1.0, 50, 7)] * 3, CONTROL: [turn(1.0, 50, 14)] * 3}
    assert ratio_of(training_ratios(rounds(**on_gpu)), "memory").value == 0.5


def test_the_summary_counts_flops_by_the_model_and_memory_over_the_members() -> None:
    ready = {name: [Ready(2, 10)] for name in rounds().turns} | {TWO: [Ready(1, 10), Ready(1, 11)]}
    found = summarise_training(rounds(), ready, SHAPE, 400)
    ours = found["contenders"][BARE]
    assert ours["target_tokens_per_second"] == {"median": 1000.0, "least": 500.0, "most": 1000.0}
    assert ours["source_tokens_per_second"]["median"] == 900.0
    assert ours["model_flops_per_second"]["median"] == training_flops(SHAPE, 400, 900, 1000)
    assert ours["share_of_matmul"] == pytest.approx(training_flops(SHAPE, 400, 900, 1000) / 2e9)
    assert (ours["peak_bytes"], ours["steps"], ours["loss"]) == (60, 30, pytest.approx(4.7))
    assert ours["other_cpu_share"] == pytest.approx(0.5)
    two = found["contenders"][TWO]
    assert (two["imported_bytes"], two["members"], two["threads"]) == (21, 2, 1)


def test_a_picture_of_both_parts(tmp_path: Path) -> None:
    ready = {name: [Ready(2, 10)] for name in rounds().turns}
    ratios = [one.as_dict() for one in training_ratios(rounds())]
    training = {**summarise_training(rounds(), ready, SHAPE, 400), "ratios": ratios}
    by_beam = {"5": {"sentences_per_second": {"median": 2.0, "least": 1.0, "most": 3.0}, "bleu": 20.0}}
    no_difference = Ratio("difference in BLEU", 0.0, Spread(0.0, 0.0, 0.0), 0.1, at_least=False).as_dict()
    decoding = {"contenders": {"ours, 1 x 2": by_beam, "CTranslate2, 2 x 1": by_beam}, "ratios": [no_difference]}
    machine = {"gpu": None, "processor": "a processor", "cores": 2}
    both = draw_bench({"machine": machine, "training": training, "decoding": decoding}, tmp_path / "both.png")
    one = draw_bench({"machine": machine, "decoding": decoding}, tmp_path / "figures" / "one.png")
    assert both.read_bytes()[:4] == one.read_bytes()[:4] == b"\x89PNG"
    assert both.stat().st_size > one.stat().st_size > 5000
