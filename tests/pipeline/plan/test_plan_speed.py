"""The model of time: by hand, and its laws."""

from dataclasses import replace

import pytest
import torch

from transloom.model.build import ModelConfig, build_model
from transloom.model.config import (
    Activation,
    Attention,
    DecoderConfig,
    FeatureMap,
    LanguageModelConfig,
    Norm,
    Normalization,
    Positions,
    RecurrentConfig,
    RecurrentDecoderConfig,
    TransformerConfig,
)
from transloom.model.losses import label_smoothed_cross_entropy
from transloom.model.packing import Layout
from transloom.pipeline.data.pairs import PairBatch
from transloom.pipeline.plan.hardware import GPUS, this_cpu
from transloom.pipeline.plan.launches import _Counting, launches
from transloom.pipeline.plan.speed import Work, accumulation, communication_seconds, grown, step_time
from transloom.pipeline.train.objective import TranslationObjective
from transloom.pipeline.train.optimizer import Precision

H100 = next(one for one in GPUS if one.key == "h100")
WORK = Work(micro_batches=8, flops=8e12, launches=0, parameters=100_000_000, precision=Precision.bf16, stage=0)


def test_an_all_reduce_by_hand() -> None:
    # Within a machine: 2 x 3/4 of 400 MB at 360 GB/s, and 6 times 3 microseconds
    assert communication_seconds(WORK, H100, 4) == pytest.approx(1.5 * 400e6 / 360e9 + 6 * 3e-6)
    # Two machines: the network sets the pace
    assert communication_seconds(WORK, H100, 16) == pytest.approx(30 / 16 * 400e6 / 40e9 + 30 * 10e-6)
    assert communication_seconds(WORK, H100, 1) == 0


def test_stages_send_what_they_send() -> None:
    def bytes_in_all(stage: int, micro_batches: int = 8) -> float:
        device = replace(H100, link_latency=0.0)
        work = replace(WORK, stage=stage, micro_batches=micro_batches)
        return communication_seconds(work, device, 4) * device.link / (3 / 4)

    gradients, weights = 400e6, 200e6
    assert bytes_in_all(0) == pytest.approx(2 * gradients)
    assert bytes_in_all(1) == pytest.approx(2 * gradients + weights)
    assert bytes_in_all(2) == pytest.approx(2 * 2 * gradients + weights)  # two micro-batches each
    assert bytes_in_all(3) == pytest.approx(2 * gradients + 4 * weights)


def test_a_step_is_what_the_busiest_worker_has() -> None:
    assert [accumulation(8, workers) for workers in range(1, 9)] == [8, 4, 3, 2, 2, 2, 2, 1]
    alone = step_time(WORK, H100, 1)
    assert alone.computation == pytest.approx(8e12 / (790e12 * 0.33))
    assert alone.communication == 0
    assert step_time(WORK, H100, 4).computation == pytest.approx(alone.computation / 4)
    assert step_time(WORK, H100, 7).computation == step_time(WORK, H100, 4).computation
    assert step_time(replace(WORK, stage=1), H100, 4).update == pytest.approx(alone.update / 4)


def test_a_growing_batch_costs_only_communication() -> None:
    times = [step_time(grown(WORK, 4, workers), H100, workers) for workers in (1, 2, 8, 16, 1024)]
    assert len({time.computation for time in times}) == 1
    assert [time.communication for time in times] == sorted(time.communication for time in times)
    assert times[0].computation == pytest.approx(2 * 1e12 / (790e12 * 0.33))  # two of its eight micro-batches each


def test_workers_beside_each_other_and_ray_slow_each_other_down() -> None:
    cpu = replace(this_cpu(4, 1, 16e9, ["amx_bf16"]), crowding=0.1)
    speeds = [cpu.flops_per_second(Precision.bf16, workers) for workers in (1, 2, 4, 8)]
    assert [speed / speeds[0] for speed in speeds] == pytest.approx([1.0, 0.9, 0.7 - 0.2 / 4, 0.7 - 0.2 / 4])


def test_a_cpu_is_known_by_its_instructions() -> None:
    def peak(*flags: str) -> float:
        return this_cpu(2, 1, 8e9, flags).peak[Precision.bf16]

    assert peak("amx_bf16", "avx512_bf16") > peak("avx512_bf16") > peak("avx2")
    assert this_cpu(8, 2, 8e9, []).per_machine == 4
    assert this_cpu(8, 2, 8e9, []).memory_bytes == 2e9
    assert this_cpu(1, 2, 8e9, []).per_machine == 1


def test_a_gpu_waits_for_its_kernels_to_be_launched_a_cpu_does_not() -> None:
    shallow, deep = (TransformerConfig(encoder_layers=layers, decoder_layers=layers) for layers in (1, 6))
    assert launches(deep) - launches(shallow) > 5 * 100
    small = replace(WORK, flops=8e6, launches=1000)
    assert step_time(small, H100, 1).computation == pytest.approx(8 * 1000 * H100.launch)
    assert step_time(replace(small, flops=8e15), H100, 1).computation == pytest.approx(8e15 / (790e12 * 0.33))
    cpu = this_cpu(2, 1, 16e9, [])
    assert step_time(small, cpu, 1).computation == pytest.approx(8e6 / cpu.flops_per_second(Precision.bf16, 1))


@pytest.mark.parametrize(
    "config",
    [
        TransformerConfig(64, 64, 4, encoder_layers=3, decoder_layers=2),
        TransformerConfig(64, 64, 4, d_k=8, d_v=24, encoder_layers=2, decoder_layers=3, norm=Norm.pre),
        TransformerConfig(
            64,
            64,
            4,
            encoder_layers=3,
            decoder_layers=3,
            norm=Norm.pre,
            normalization=Normalization.rms,
            activation=Activation.swiglu,
            positions=Positions.rotary,
            key_value_heads=2,
            bias=False,
        ),
        RecurrentConfig(32, 3, 3),
        RecurrentDecoderConfig(32, 3),
        DecoderConfig(3, 64, 64, 4, dropout=0.0),
        DecoderConfig(3, 64, 64, 4, dropout=0.0, attention=Attention.window, window=8, global_tokens=2),
        DecoderConfig(3, 64, 64, 4, dropout=0.0, attention=Attention.linear, feature_map=FeatureMap.favor),
    ],
    ids=["paper", "heads of two widths", "modern", "lstm", "lstm language model", "gpt", "window", "linear"],
)
def test_launches_are_those_of_the_whole_model(config: ModelConfig) -> None:
    """What a profiler sees of a step of the model itself, at its own width and depth."""
    model = build_model(config, 100).train()
    row = torch.arange(4, 61)
    layout = Layout.of(torch.tensor([14, 15, 16, 12]))
    counting = _Counting()
    with counting:
        if isinstance(config, LanguageModelConfig):
            label_smoothed_cross_entropy(model(row, layout), model.output_weight, row, 0.1).total.backward()
        else:
            TranslationObjective(model, 0.1)(PairBatch(row, layout, row, layout, row, len(row))).total.backward()
    seen = counting.operations + len(list(model.parameters()))
    assert launches(config) == pytest.approx(seen, rel=0.03, abs=6)  # a few depend on the sizes


def test_counting_launches_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    launches.cache_clear()
    launches(TransformerConfig(64, 64, 4))
    assert torch.equal(torch.rand(3), expected)
