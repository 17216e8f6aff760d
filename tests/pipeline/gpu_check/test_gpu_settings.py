"""What the check does is what conf/ says, which it may not read itself."""

import pytest

from transloom.jobs.config.compose import load_config
from transloom.pipeline.bench.task import Kind
from transloom.pipeline.gpu_check.settings import DEMO, TRAININGS, attention_size, decoding_size
from transloom.pipeline.gpu_check.training import SEED, task_of


def test_the_demo_is_the_experiment() -> None:
    config = load_config(["experiment=demo", "precision=bf16"])  # which auto is on the GPUs that the targets are for
    for name in ("corpus", "clean", "tokenizer", "model", "batch", "optimizer", "schedule", "precision", "train"):
        assert getattr(DEMO, name) == getattr(config, name), name
    assert (DEMO.decode, DEMO.seed) == (config.decode, config.seed)


@pytest.mark.parametrize("name", ["base", "big"])
def test_training_is_the_papers(name: str, tmp_path) -> None:
    config = load_config([f"experiment=paper_{name}_en_de", "precision=bf16"])
    size = TRAININGS[name]
    task = task_of(Kind.ours, size, tmp_path, use_gpu=True)
    assert size.model == config.model and size.vocab_size == config.tokenizer.vocab_size
    assert size.batch.tokens == config.batch.tokens
    for part in ("optimizer", "schedule", "precision", "seed"):
        assert getattr(task, part) == getattr(config, part), part
    assert task.label_smoothing == config.train.label_smoothing and task.seed == SEED


def test_decoding_is_the_usual_search() -> None:
    config = load_config(["experiment=demo", "decode=beam5"])
    ours = decoding_size("cuda").decode
    assert (ours.beam, ours.length_penalty, ours.extra_tokens) == (
        config.decode.beam,
        config.decode.length_penalty,
        config.decode.extra_tokens,
    )


def test_sides_differ_in_the_comparison_of_attention() -> None:
    for device in ("cpu", "cuda"):
        lengths = attention_size(device).lengths
        assert all(one != other for one, other in zip(lengths, lengths[::-1], strict=True))
