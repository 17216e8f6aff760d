"""The bench of lengths: exponents and crossings by hand, and a measurement of a tiny model."""

import struct
from pathlib import Path
from typing import Any

import pytest

from transloom.model.config import Attention, DecoderConfig
from transloom.pipeline.bench.config import BenchConfig
from transloom.pipeline.bench.length import (
    LengthTask,
    crossing,
    expected_seconds,
    exponent,
    length_result,
    make_stepper,
)
from transloom.pipeline.bench.length_picture import draw_lengths
from transloom.pipeline.train.optimizer import OptimizerConfig, Precision, PrecisionConfig

LENGTHS = [2**power for power in range(10, 17)]


def test_an_exponent_is_the_slope_of_the_last_four_doublings() -> None:
    """n^2 in the last five lengths, whatever comes before; one round is twice as slow throughout: the same slope."""
    seconds = {length: [1.0, 1.0] if length < 4096 else [length**2.0, 2 * length**2.0] for length in LENGTHS}
    fitted = exponent(seconds)
    assert fitted is not None
    assert [fitted[key] for key in ("value", "least", "most")] == pytest.approx([2.0, 2.0, 2.0])
    assert (fitted["from_length"], fitted["to_length"]) == (4096, 65536)
    assert exponent({1024: [1.0], 2048: [2.0]}) is None
    spread = exponent({1: [1.0, 1.0], 2: [2.0, 4.0], 4: [4.0, 16.0]})
    assert spread is not None
    assert [spread["least"], spread["most"]] == pytest.approx([1.0, 2.0])


def test_curves_cross_where_they_are_equal() -> None:
    full = {length: length**2 / 3000 for length in LENGTHS}
    window = {length: float(length) for length in LENGTHS}
    assert crossing(full, window) == pytest.approx(3000)
    assert crossing(window, full) is None  # not above at the end
    assert crossing(full, {length: 0.1 for length in LENGTHS}) == 1024
    short = {length: full[length] for length in LENGTHS[:3]}  # the longer ones were left out
    assert crossing(short, window) == pytest.approx(3000)
    assert crossing({}, window) is None


def test_a_step_is_expected_to_grow_as_it_has_grown() -> None:
    assert expected_seconds({1024: 1.0}, 2048) == 0.0
    assert expected_seconds({1024: 1.0, 2048: 4.0}, 4096) == pytest.approx(16.0)
    assert 4.0 <= expected_seconds({1024: 1.0, 2048: 2.0}, 4096) < 5.0
    assert expected_seconds({1024: 1.0, 2048: 9.0}, 4096) == pytest.approx(36.0)  # a disturbed measurement


def line(kind: str, length: int, seconds: float, alone: float) -> dict[str, Any]:
    return {
        "attention": kind,
        "length": length,
        "seconds": [seconds, 1.1 * seconds],
        "attention_seconds": [alone, 1.1 * alone],
        "peak_bytes": 1_000_000 * length,
        "imported_bytes": 5,
    }


def test_the_result_names_crossings_and_what_was_left_out(tmp_path: Path) -> None:
    lines = [line("full", n, (n + n**2 / 2048) / 1e4, n**2 / 2048 / 1e4) for n in LENGTHS[:4]]
    lines += [{"attention": "full", "length": 16384, "expected_seconds": 200.0}]
    lines += [line("window", n, 2.5 * n / 1e4, 1.5 * n / 1e4) for n in LENGTHS[:5]]
    lengths = tuple(LENGTHS[:6])
    result = length_result(lines, BenchConfig(lengths=lengths))
    full, window = result["kinds"]["full"], result["kinds"]["window"]
    assert full["left_out"] == {"16384": 200.0}
    assert list(full["lengths"]) == ["1024", "2048", "4096", "8192"]
    assert full["attention_above_rest"] == pytest.approx(2048, rel=0.1)
    assert window["attention_above_rest"] == 1024
    assert window["exponent"]["value"] == pytest.approx(1.0)
    assert full["attention_exponent"]["value"] == pytest.approx(2.0)
    assert result["full_slower_than"] == {"window": pytest.approx(3072, rel=0.03)}
    assert result["measured"] == {"turns": 10, "of": 18}
    machine = {"gpu": None, "processor": "a processor", "cores": 2}
    picture = draw_lengths({"lengths": result, "machine": machine}, tmp_path / "bench.png")
    head = picture.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert struct.unpack(">I", head[16:20]) == (1000,)


@pytest.mark.parametrize("kind", [attention.value for attention in Attention])
def test_a_step_of_each_kind_is_measured(kind: str) -> None:
    base = DecoderConfig(layers=2, d_model=16, d_ff=32, num_heads=2, dropout=0.1, window=16)
    precision = PrecisionConfig(Precision.fp32)
    task = LengthTask.of(LengthTask(base, 300, OptimizerConfig(), precision, seed=1, use_gpu=False), kind, 96)
    assert (task.model.attention.value, task.model.max_positions, task.model.dropout) == (kind, 96, 0.0)
    answer, imported = make_stepper(task)
    costs = [answer(None) for _ in range(2)]
    for cost in costs:
        assert cost.attention_seconds > 0
        assert cost.seconds > 0
        assert imported <= cost.peak_bytes
