"""A whole plan: its numbers against the paper's and each other, and that it is JSON."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from transloom.model.config import TransformerConfig
from transloom.model.flops import count_parameters
from transloom.pipeline.data.batches import BatchConfig
from transloom.pipeline.plan.calibrate import Calibration, calibrated
from transloom.pipeline.plan.hardware import GPUS, Hardware, this_cpu
from transloom.pipeline.plan.launches import launches
from transloom.pipeline.plan.memory import Footing, cpu_footing
from transloom.pipeline.plan.paper import paper_cost
from transloom.pipeline.plan.picture import draw_plan
from transloom.pipeline.plan.plan import as_given, make_plan
from transloom.pipeline.plan.speed import Work, step_time
from transloom.pipeline.plan.training import Training, memory_alone
from transloom.pipeline.plan.volume import Volume
from transloom.pipeline.train.engine import EngineConfig, EngineName
from transloom.pipeline.train.optimizer import Precision
from transloom.pipeline.train.session import TrainConfig

CPU = this_cpu(2, 1, 24e9, ["avx512_bf16"])
VOLUME = Volume(4_500_000, 135_000_000, 135_000_000, 100, 25_000.0, 25_000.0, "published")
BASE = Training(
    model=TransformerConfig(),
    vocab_size=37_000,
    batch=BatchConfig(tokens=25_000, micro_tokens=3125),
    engine=EngineConfig(EngineName.deepspeed, 1),
    precision=Precision.bf16,
    train=TrainConfig(max_steps=100_000, checkpoint_every=1400, validate_every=1400, average=5),
    seed=1,
    corpus="wmt14_en_de",
    volume=VOLUME,
    shards=None,
    workers=8,
    on_gpu=True,
)
BIG = replace(BASE, model=TransformerConfig(d_model=1024, d_ff=4096, num_heads=16))


def plan_of(training: Training, **changes: Any) -> dict[str, Any]:
    return make_plan(training, [*GPUS, CPU], cpu_footing(True), **changes)


def on(plan: dict[str, Any], key: str) -> dict[str, Any]:
    return next(one for one in plan["hardware"] if one["key"] == key)


def test_base_costs_what_its_flops_cost() -> None:
    plan = plan_of(BASE)
    assert plan["model"]["parameters"] == pytest.approx(63.1e6, rel=0.01)
    assert plan["model"]["flops"] == pytest.approx(0.381e9 * 25_000 * 100_000, rel=0.01)
    h100 = on(plan, "h100")
    # A micro-batch of 3,125 tokens is computed before it is launched; a larger one at a third of 790 TFLOP/s
    assert h100["step_seconds"]["computation"] == pytest.approx(launches(BASE.model) * 8e-6)
    large = replace(
        BASE, batch=BatchConfig(200_000, 25_000), volume=replace(VOLUME, step_source_tokens=2e5, step_target_tokens=2e5)
    )
    seconds = on(plan_of(large), "h100")["step_seconds"]["computation"]
    assert seconds == pytest.approx(0.381e9 * 200_000 / (8 * 790e12 * 0.33), rel=0.01)
    assert h100["hours"] > h100["step_seconds"]["total"] * 100_000 / 3600  # checkpoints
    assert h100["cost"] == pytest.approx(h100["hours"] * 8 * 3.0)
    assert h100["fits"] and h100["recommended_stage"] == 0


def test_r_drop_passes_the_model_twice() -> None:
    plan, twice = plan_of(BASE), plan_of(replace(BASE, train=replace(BASE.train, r_drop=5.0)))
    assert twice["model"]["flops"] == 2 * plan["model"]["flops"]
    before, after = (on(one, "h100") for one in (plan, twice))
    assert after["step_seconds"]["computation"] == pytest.approx(2 * before["step_seconds"]["computation"])
    passing = [one["memory"]["gpu"]["bf16"][1]["passing"] for one in (plan, twice)]
    # Activations are kept twice; logits, which are computed in parts, take as much as before.
    assert 1.4 * passing[0] < passing[1] < 2.2 * passing[0]


def test_an_a100_trains_big_as_fast_as_it_is_known_to() -> None:
    """82,000 tokens/s on one, 552,000 on eight (NVIDIA's DeepLearningExamples)."""
    for workers, published in ((1, 82_000), (8, 552_000)):
        batch = BatchConfig(10_240 * workers, 10_240)
        volume = replace(VOLUME, step_source_tokens=10_240.0 * workers, step_target_tokens=10_240.0 * workers)
        training = replace(BIG, workers=workers, vocab_size=33_000, batch=batch, volume=volume)
        one = on(plan_of(training), "a100")
        assert one["target_tokens_per_second"] == pytest.approx(published, rel=0.25)


@pytest.mark.parametrize(("model", "corpus"), [(m, c) for m in ("base", "big") for c in ("wmt14_en_de", "wmt14_en_fr")])
def test_the_papers_trainings_stand_beside_the_papers_cost(model: str, corpus: str) -> None:
    training = replace(BASE if model == "base" else BIG, corpus=corpus)
    paper = plan_of(training)["paper"]
    assert paper["flops"] == (3.3e18 if model == "base" else 2.3e19)
    assert paper["hours"] == (12 if model == "base" else 84)
    # Its own count: 8 GPUs x 9.5 TFLOP/s for as long
    assert paper["flops"] == pytest.approx(8 * 9.5e12 * paper["hours"] * 3600, rel=0.03)
    assert paper["step_seconds"] * paper["steps"] / 3600 == pytest.approx(paper["hours"], rel=0.1)
    assert 0.2 < paper["utilisation"] < 0.5


def test_what_the_paper_did_not_train_has_no_cost_of_its() -> None:
    assert plan_of(replace(BASE, corpus="multi30k_en_de"))["paper"] is None
    assert paper_cost(TransformerConfig(encoder_layers=5), "wmt14_en_de") is None
    assert paper_cost(TransformerConfig(d_k=32), "wmt14_en_de") is None


def test_every_allowed_number_of_workers_has_its_accumulation() -> None:
    shares = plan_of(BASE)["batch"]["shares"]
    assert [(one["workers"], one["accumulation"]) for one in shares] == list(enumerate([8, 4, 3, 2, 2, 2, 2, 1], 1))
    assert [one["idle"] for one in shares if one["workers"] in (1, 2, 4, 8)] == [0, 0, 0, 0]
    assert next(one["idle"] for one in shares if one["workers"] == 3) == pytest.approx(1 / 9)


def test_the_step_grows_from_1_to_1024_workers() -> None:
    for rows in plan_of(BASE)["growth"].values():
        assert [row["workers"] for row in rows] == [2**power for power in range(11)]
        assert [row["same_batch"] is None for row in rows] == [False] * 4 + [True] * 7
        growing = [row["growing_batch"] for row in rows]
        assert [one["tokens"] for one in growing] == [3125 * 2**power for power in range(11)]
        assert growing[0]["efficiency"] == 1
        assert growing[-1]["efficiency"] < growing[1]["efficiency"] <= 1.2  # ZeRO shares the update


def test_a_time_limit_ends_the_steps() -> None:
    limited = replace(BASE, train=replace(BASE.train, max_minutes=1.0))
    h100 = on(plan_of(limited), "h100")
    assert h100["steps"] * h100["step_seconds"]["total"] == pytest.approx(60)
    assert h100["steps"] < 100_000


def test_a_stage_is_chosen_that_fits() -> None:
    def narrow(memory: float) -> Hardware:
        return replace(GPUS[0], memory_bytes=memory)

    totals = [one["total"] for one in plan_of(BIG)["memory"]["gpu"]["bf16"]]
    assert totals[0] > totals[1] > totals[2]
    plan = make_plan(BIG, [narrow(totals[2] / 0.95 + 1), CPU], cpu_footing(True))
    assert (plan["hardware"][0]["recommended_stage"], plan["hardware"][0]["stage"]) == (2, 2)
    plan = make_plan(BIG, [narrow(1e9), CPU], cpu_footing(True))
    assert plan["hardware"][0]["recommended_stage"] is None and not plan["hardware"][0]["fits"]


def test_a_price_can_be_given() -> None:
    given = {"price": {"a100": 9.5}, "link": {}, "network": {"h200": 1e9}}
    assert [as_given(one, given).price for one in GPUS] == [4.0, 3.0, 9.5]
    assert [as_given(one, given).network for one in GPUS] == [1e9, 40e9, 20e9]


def test_a_calibrated_machine_takes_the_steps_that_were_measured() -> None:
    measured = Calibration(
        workers=2,
        flops_alone=2e11,
        flops_together=1.8e11,
        update_seconds=0.05,
        link=1e9,
        latency=1e-4,
        training_bytes=9e8,
        micro_batches=50,
        checkpoint_seconds=1.5,
    )
    training = replace(BASE, on_gpu=False, workers=2)
    parameters = count_parameters(training.model, training.vocab_size)
    predicted = memory_alone(training, 50, cpu_footing(True))
    cpu, footing = calibrated(CPU, cpu_footing(True), measured, Precision.bf16, parameters, predicted)
    work = Work(8, 8e11, 1000, parameters, Precision.bf16, stage=0)
    alone, together = step_time(work, cpu, 1), step_time(work, cpu, 2)
    assert alone.total == pytest.approx(8e11 / 2e11 + 0.05)
    ring = 4 * parameters / 1e9 + 2 * 1e-4
    for_ray = 0.2 / 2 * 2e11  # of the machine's two cores, which the two workers fill
    assert together.total == pytest.approx(4e11 / (1.8e11 - for_ray) + 0.05 + ring)
    assert cpu.origin == "measured"
    short = replace(training.train, max_steps=6)  # of eight micro-batches: about as many as were measured
    alone_again = replace(training, engine=EngineConfig(EngineName.torch), workers=1, train=short)
    plan = make_plan(alone_again, [cpu], footing, 1.5)
    assert on(plan, "cpu")["memory_bytes"] == pytest.approx(cpu_footing(True).libraries + 9e8, rel=0.02)
    assert on(plan, "cpu")["checkpoint_stall_seconds"] == 1.5


def test_it_is_json_and_has_a_picture(tmp_path: Path) -> None:
    plan = plan_of(replace(BASE, volume=replace(VOLUME, pairs=None, source_tokens=None, target_tokens=None)))
    assert json.loads(json.dumps(plan)) == plan
    assert plan["data"]["epochs"] is None
    assert draw_plan(plan, tmp_path / "a" / "plan.png", "base").stat().st_size > 20_000


def test_nothing_is_free() -> None:
    footing = Footing(libraries=5e8, slack=1.0)
    plan = make_plan(BASE, [CPU], footing)
    assert on(plan, "cpu")["workers"] == 2  # as many as fit on this machine
    for precision in ("fp32", "bf16"):
        for one in plan["memory"]["cpu"][precision]:
            assert one["total"] == pytest.approx(
                sum(one[part] for part in ("libraries", "weights", "optimizer", "gradients", "passing", "kernels"))
            )
            assert one["libraries"] == 5e8
