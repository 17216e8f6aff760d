"""The laws of training, for every task: whatever is trained, the result depends neither on the number of workers nor on
the engine nor on stops. A new task adds its words to TASKS, and nothing else."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks

from transloom.jobs.config.compose import load_config
from transloom.jobs.config.schema import Config
from transloom.pipeline.data.batches import iterate_steps
from transloom.pipeline.tasks.build import TaskName, make_task, prepare_data
from transloom.pipeline.tasks.task import Evaluation, Score, Task
from transloom.pipeline.train.checkpoint import load_checkpoint, newest_checkpoint
from transloom.pipeline.train.engine import EngineConfig, EngineName, make_engine
from transloom.pipeline.train.loop import train
from transloom.pipeline.train.session import Reports, Session, TrainState

CPU = torch.device("cpu")
COMMON = (
    "batch.tokens=256",
    "batch.micro_tokens=64",
    "optimizer.weight_decay=0.1",
    "optimizer.clip_norm=1.0",
    "optimizer.eps=1e-4",  # a key's bias has no gradient, of whose rounding Adam with the usual 1e-9 makes whole steps
    "precision=fp32",
    "train.max_steps=12",
    "train.log_every=1",
    "train.validate_every=100",
    "train.checkpoint_every=5",
    "schedule.warmup_steps=4",
    "cluster.num_workers=1",
    "seed=3",
)
SMALL = ("model.d_model=32", "model.d_ff=64", "model.num_heads=4", "model.dropout=0.1")
WORDS = ["sun", "moon", "sea", "sand", "käse", "water", "stone", "light"]


def sentences(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(WORDS[i] for i in random.integers(0, len(WORDS), random.integers(2, 9))) for _ in range(count)]


def translation(folder: Path, count: int) -> list[str]:
    """To turn a sentence's words around."""
    words = ["experiment=demo", "corpus=text", "corpus.name=words", "corpus.source_language=en"]
    for seed, (split, size) in enumerate({"train": count, "validation": 12, "test": 12}.items()):
        lines = sentences(size, seed)
        (folder / f"{split}.en").write_text("\n".join(lines) + "\n")
        (folder / f"{split}.de").write_text("\n".join(" ".join(line.split()[::-1]) for line in lines) + "\n")
        words += [f"corpus.{split}.source={folder}/{split}.en", f"corpus.{split}.target={folder}/{split}.de"]
    return [*words, "corpus.target_language=de", "tokenizer.vocab_size=280", "model.encoder_layers=1",
            "model.decoder_layers=1"]  # fmt: skip


def language_model(folder: Path, count: int) -> list[str]:
    """Documents, one of which is longer than many contexts."""
    words = ["experiment=language_model/demo", "corpus=text", "corpus.name=documents"]
    for split, size in (("train", count), ("validation", 6), ("test", 6)):
        (folder / split).mkdir()
        for number, text in enumerate(sentences(size, len(split))):
            times = 60 if number == 7 and count > 10 else 1
            (folder / split / f"{number}.txt").write_text(f"{number} {text} " * times)
        words.append(f"corpus.{split}.text={folder}/{split}/*.txt")
    return [*words, "tokenizer.vocab_size=280", "model.layers=2", "model.key_value_heads=2", "model.max_positions=32"]


def masked_language_model(folder: Path, count: int) -> list[str]:
    return [*language_model(folder, count), "task=masked_language_model", "model.causal=false"]


def classification(folder: Path, count: int) -> list[str]:
    """Whether a sentence has the word sun."""
    words = ["experiment=transfer/classification", "corpus.name=suns"]
    for split, size in (("train", count), ("validation", 12), ("test", 12)):
        rows = (f"{number} {line}\t{'sun' in line}" for number, line in enumerate(sentences(size, len(split))))
        (folder / f"{split}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
        words.append(f"corpus.{split}.files={folder}/{split}.tsv")
    return [*words, "tokenizer.vocab_size=280", "model.layers=2", "model.max_positions=32"]


def prompt_response(folder: Path, count: int) -> list[str]:
    """To turn a prompt's words around."""
    words = ["experiment=transfer/debian_summaries", "corpus=records", "corpus.name=turned"]
    for split, size in (("train", count), ("validation", 12), ("test", 12)):
        lines = [f"{number} {line}" for number, line in enumerate(sentences(size, len(split)))]
        records = (json.dumps({"prompt": line, "response": " ".join(line.split()[::-1])}) for line in lines)
        (folder / f"{split}.jsonl").write_text("\n".join(records) + "\n")
        words.append(f"corpus.{split}.files={folder}/{split}.jsonl")
    words += ["corpus.max_response_tokens=30", "corpus.template='{prompt} = '"]
    return [*words, "tokenizer.vocab_size=280", "model.layers=2", "model.key_value_heads=2", "model.max_positions=64"]


# The words of a task on a corpus of so many training examples, written to a folder.
TASKS: dict[str, Callable[[Path, int], Sequence[str]]] = {
    TaskName.translation.value: translation,
    TaskName.language_model.value: language_model,
    TaskName.masked_language_model.value: masked_language_model,
    TaskName.classification.value: classification,
    TaskName.prompt_response.value: prompt_response,
}


def prepare(folder: Path, name: str, count: int = 60, *words: str) -> tuple[Config, dict[str, Path]]:
    data = folder / "data"
    data.mkdir()
    config = load_config([*TASKS[name](data, count), *COMMON, *SMALL, "train.label_smoothing=0.0", *words])
    prepared = prepare_data(config, folder)
    return config, {stage: getattr(prepared, stage).folder for stage in ("corpus", "tokenizer", "shards")}


Prepared = dict[str, tuple[Config, dict[str, Path]]]


R_DROP = "translation with R-drop"  # whose two passes draw other elements to drop


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    by_name = {name: prepare(tmp_path_factory.mktemp(name), name) for name in TASKS}
    config, stages = by_name["translation"]
    return by_name | {R_DROP: (replace(config, train=replace(config.train, r_drop=2.0)), stages)}


def task_of(config: Config, stages: dict[str, Path]) -> Task:
    return make_task(config, lambda stage: stages[stage])


def run(
    folder: Path, config: Config, stages: dict[str, Path], engine: EngineConfig | None = None, stop_at: int = 0
) -> dict[str, Any]:
    """Trains as a worker does, from the newest checkpoint if there is one: losses and weights at the end."""
    task = task_of(config, stages)
    torch.manual_seed(config.seed)
    model = task.model()
    state, initial = TrainState(), None
    if (newest := newest_checkpoint(folder / "checkpoints")) is not None:
        initial, saved = load_checkpoint(newest)
        state = TrainState.of(saved)
    made = make_engine(
        task.objective(model).train(),
        config.optimizer,
        config.precision,
        engine or EngineConfig(EngineName.torch),
        CPU,
        initial,
    )
    losses: dict[int, float] = {}

    def metrics(values: Any, step: int) -> None:
        if "train/loss" in values:
            losses[step] = values["train/loss"]

    name = task.selects.name
    session = Session(
        config.train,
        engine=made,
        state=state,
        folder=folder,
        metadata={},
        selects=task.selects,
        validate=lambda step, path: Evaluation(1.0, {name: Score(name, 2.0)}, 1),
        reports=Reports(metrics, lambda step, _: None, lambda _: None),
        flops=lambda tokens: 0.0,
        stop=lambda: state.step == stop_at,
    )
    train(session, task, config.batch, config.seed, lambda step: 3e-3)
    return {"losses": losses, "weights": made.weights(), "tokens": state.tokens}


@pytest.mark.parametrize("name", [*TASKS, R_DROP])
def test_stopped_and_resumed_equals_never_stopped_bit_for_bit(prepared: Prepared, tmp_path: Path, name: str) -> None:
    whole = run(tmp_path / "whole", *prepared[name])
    stopped = run(tmp_path / "stopped", *prepared[name], stop_at=7)
    assert max(stopped["losses"]) == 7
    resumed = run(tmp_path / "stopped", *prepared[name])
    assert stopped["losses"] | resumed["losses"] == whole["losses"]
    assert resumed["tokens"] == whole["tokens"]
    assert all(torch.equal(whole["weights"][key], tensor) for key, tensor in resumed["weights"].items())


def run_all(folder: Path, prepared: Prepared, engines: list[EngineConfig]) -> dict[tuple[str, str], dict[str, Any]]:
    """Every task under every engine, in the same processes: deepspeed is imported once."""
    return {
        (name, str(engine)): run(folder / name / str(number), *settings, engine)
        for name, settings in prepared.items()
        for number, engine in enumerate(engines)
    }


def validate_all(prepared: Prepared) -> dict[str, Evaluation]:
    evaluations = {}
    for name, settings in prepared.items():
        task = task_of(*settings)
        torch.manual_seed(5)
        evaluations[name] = task.validate(task.model().eval())
    return evaluations


def work_of_a_rank(folder: Path, prepared: Prepared, engines: list[EngineConfig]) -> Any:
    return run_all(folder, prepared, engines), validate_all(prepared)


@pytest.mark.slow
def test_two_workers_under_every_engine_equal_one_worker(prepared: Prepared, tmp_path: Path) -> None:
    alone = {name: run(tmp_path / "alone" / name, *settings) for name, settings in prepared.items()}
    engines = [EngineConfig(EngineName.torch), *(EngineConfig(EngineName.deepspeed, stage) for stage in range(4))]
    (trained, validated), (_, on_second) = run_ranks(work_of_a_rank, 2, tmp_path / "ranks", prepared, engines)
    for (name, engine), result in trained.items():  # the whole weights are rank 0's
        expected = alone[name]
        assert result["losses"] == pytest.approx(expected["losses"], rel=1e-5), (name, engine)
        assert result["tokens"] == expected["tokens"], (name, engine)
        for key, tensor in expected["weights"].items():
            assert float((tensor - result["weights"][key]).abs().max()) < 2e-5, (name, engine, key)
    for name, expected in validate_all(prepared).items():
        assert validated[name].samples == on_second[name].samples == expected.samples, name
        for evaluation in (validated[name], on_second[name]):
            assert evaluation.values() == pytest.approx(expected.values(), rel=1e-5), name


@pytest.mark.parametrize("name", TASKS)
def test_an_epoch_is_the_same_elements_at_every_number_of_workers(prepared: Prepared, name: str) -> None:
    config, stages = prepared[name]
    task = task_of(config, stages)
    examples = task.examples("train")
    seen: dict[int, list[tuple[int, ...]]] = {}
    for world_size in (1, 3):
        elements = []
        for rank in range(world_size):
            steps = iterate_steps(
                examples, task.collate, task.loss_column, config.batch, 1, rank=rank, world_size=world_size, epoch=1,
                of_epoch=task.epoch,
            )  # fmt: skip
            for step in steps:
                if step.epoch != 1:
                    break
                rows = [row for rows, share in zip(step.rows, step.shares, strict=True) if share for row in rows]
                elements += [tuple(step.examples.get(task.loss_column, int(row)).tolist()) for row in rows]
        seen[world_size] = sorted(elements)
    assert seen[1] == seen[3]
    if task.loss_column in examples.columns:
        column = examples.columns.index(task.loss_column)
        assert sum(map(len, seen[1])) == int(examples.lengths[:, column].sum()), "every element once"


@pytest.mark.parametrize("name", TASKS)
def test_ten_examples_are_learned_by_heart(tmp_path: Path, name: str) -> None:
    settings = prepare(tmp_path, name, 10, "model.dropout=0.0", "batch.tokens=1024", "batch.micro_tokens=1024")
    task = task_of(*settings)
    torch.manual_seed(0)
    objective = task.objective(task.model())
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2, betas=(0.9, 0.95))
    examples = task.epoch(task.examples("train"), 0, 0)
    batch = task.collate(examples, range(len(examples)))
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = objective(batch)
        (loss.total / loss.num_tokens).backward()
        optimizer.step()
        losses.append(loss.total.item())
    # The first word of a text, one of ten, can't be known where nothing stands before it; all that follows can.
    assert losses[-1] < max(0.02 * losses[0], 1.15 * 10 * math.log(10) * (name == "language_model"))
