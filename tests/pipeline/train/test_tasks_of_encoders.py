"""Classification and masked language modelling by the tasks themselves: the laws that hold for every task."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks

from transloom.model.config import DecoderConfig, Normalization, Pooling, Positions
from transloom.model.flops import training_flops
from transloom.pipeline.data.batches import BatchConfig, iterate_steps
from transloom.pipeline.data.documents import DocumentsConfig, DocumentsKind, HeldOutConfig, SourceConfig
from transloom.pipeline.data.labelled import LabelledConfig
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.data.prepare_documents import prepare_documents
from transloom.pipeline.data.prepare_labelled import prepare_labelled
from transloom.pipeline.data.records import RecordSource
from transloom.pipeline.data.text_tokenizer import TextTokenizerConfig, TextTokenizerKind, load_text_tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.evaluate.classifier import Classifier
from transloom.pipeline.export import Format, export
from transloom.pipeline.files import read_json
from transloom.pipeline.generate.translator import Translator
from transloom.pipeline.model_folder import (
    is_language_model,
    load_classifier,
    load_language_model,
    read_model,
    save_model,
)
from transloom.pipeline.tasks.classification import classification
from transloom.pipeline.tasks.masked_language_model import masked_language_model
from transloom.pipeline.tasks.task import Evaluation, Score, Task
from transloom.pipeline.train.checkpoint import load_checkpoint, newest_checkpoint
from transloom.pipeline.train.engine import EngineConfig, EngineName, make_engine
from transloom.pipeline.train.initial import fitting
from transloom.pipeline.train.loop import train
from transloom.pipeline.train.optimizer import OptimizerConfig, Precision, PrecisionConfig
from transloom.pipeline.train.session import Reports, Session, TrainConfig, TrainState

CPU = torch.device("cpu")
MODEL = DecoderConfig(
    layers=2, d_model=32, d_ff=64, num_heads=4, key_value_heads=2, dropout=0.1, max_positions=32, causal=False,
    normalization=Normalization.rms, positions=Positions.rotary, bias=False,
)  # fmt: skip
BATCH = BatchConfig(tokens=256, micro_tokens=64)
SHORT = TrainConfig(max_steps=8, log_every=1, validate_every=100, checkpoint_every=3, label_smoothing=0.0)
GOOD, BAD = ["good", "fine", "lovely", "superb"], ["bad", "poor", "dull", "awful"]
WORDS = ["the", "film", "story", "of", "its", "actors", "music"]
TASKS = ("classification", "masked_language_model")


def sentence(random: np.random.Generator, is_good: bool) -> str:
    words = [WORDS[i] for i in random.integers(0, len(WORDS), random.integers(2, 12))]
    words.insert(int(random.integers(0, len(words))), str(random.choice(GOOD if is_good else BAD)))
    return " ".join(words)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prepared]:
    """Documents, and texts with labels, of one tokenizer."""
    folder, random = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    rows = [(sentence(random, i % 3 > 0), i % 3 > 0) for i in range(130)]
    (folder / "train.tsv").write_text("".join(f"{text}\t{'pos' if good else 'neg'}\n" for text, good in rows[:100]))
    (folder / "test.tsv").write_text("".join(f"{text}\t{'pos' if good else 'neg'}\n" for text, good in rows[100:]))
    for i in range(40):
        (folder / f"{i}.txt").write_text(" ".join(sentence(random, i % 2 > 0) for _ in range(1 + i % 5)))
    held_out, source = HeldOutConfig(validation=0.2, test=0.2), SourceConfig(str(folder / "*.txt"))
    documents = DocumentsConfig(kind=DocumentsKind.text, name="words", train=source, held_out=held_out)
    out = tmp_path_factory.mktemp("out")
    masked = prepare_documents(documents, TextTokenizerConfig(vocab_size=290), out)
    copied = TextTokenizerConfig(TextTokenizerKind.file, path=str(masked.tokenizer.folder))
    labelled = LabelledConfig(
        path=str(folder), train=RecordSource("train.tsv"), test=RecordSource("test.tsv"), columns=["text", "label"]
    )
    return {"masked_language_model": masked, "classification": prepare_labelled(labelled, copied, out)}


def folders(prepared: Prepared) -> dict[str, Path]:
    return {name: getattr(prepared, name).folder for name in ("corpus", "tokenizer", "shards")}


def make(name: str, stages: Mapping[str, Path], model: DecoderConfig = MODEL) -> Task:
    kind = classification if name == "classification" else masked_language_model
    return kind(lambda stage: stages[stage], model=model, micro_tokens=64, label_smoothing=0.0)


def run(folder: Path, name: str, stages: Mapping[str, Path], stop_at: int = 0) -> dict[str, Any]:
    """Trains as a worker does, from the newest checkpoint if there is one: losses and weights at the end."""
    task = make(name, stages)
    torch.manual_seed(1)
    model = task.model()
    state, initial = TrainState(), None
    if (newest := newest_checkpoint(folder / "checkpoints")) is not None:
        initial, saved = load_checkpoint(newest)
        state = TrainState.of(saved)
    optimizer, precision = OptimizerConfig(weight_decay=0.1, clip_norm=1.0), PrecisionConfig(dtype=Precision.fp32)
    objective = task.objective(model).train()
    engine = make_engine(objective, optimizer, precision, EngineConfig(EngineName.torch), CPU, initial)
    losses: dict[int, float] = {}

    def metrics(values: Mapping[str, float], step: int) -> None:
        if "train/loss" in values:
            losses[step] = values["train/loss"]

    session = Session(
        SHORT,
        engine=engine,
        state=state,
        folder=folder,
        metadata={},
        selects=task.selects,
        validate=lambda step, path: Evaluation(1.0, {task.selects.name: Score(task.selects.name, 2.0)}, 1),
        reports=Reports(metrics, lambda step, _: None, lambda _: None),
        flops=lambda tokens: training_flops(model.config, len(model.output_weight), *tokens.values()),
        stop=lambda: state.step == stop_at,
    )
    reason = train(session, task, BATCH, 3, lambda step: 3e-3)
    return {"reason": reason, "losses": losses, "weights": engine.weights(), "tokens": state.tokens}


@pytest.mark.parametrize("name", TASKS)
def test_stopping_and_resuming_changes_no_bit(name: str, prepared: dict[str, Prepared], tmp_path: Path) -> None:
    stages = folders(prepared[name])
    whole = run(tmp_path / "whole", name, stages)
    stopped = run(tmp_path / "stopped", name, stages, stop_at=5)
    resumed = run(tmp_path / "stopped", name, stages)
    assert stopped["reason"] == "stopped" and len(whole["losses"]) == SHORT.max_steps
    assert all(torch.equal(whole["weights"][key], tensor) for key, tensor in resumed["weights"].items())
    assert stopped["losses"] | resumed["losses"] == whole["losses"] and resumed["tokens"] == whole["tokens"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_two_workers_give_the_weights_of_one(name: str, prepared: dict[str, Prepared], tmp_path: Path) -> None:
    stages = folders(prepared[name])
    alone = run(tmp_path / "alone", name, stages)
    of_first = run_ranks(run, 2, tmp_path / "ranks", name, stages)[0]
    assert alone["weights"].keys() == of_first["weights"].keys()
    distances = [float((tensor - alone["weights"][key]).abs().max()) for key, tensor in of_first["weights"].items()]
    assert max(distances) < 2e-5
    assert of_first["losses"] == pytest.approx(alone["losses"], rel=1e-5) and of_first["tokens"] == alone["tokens"]


@pytest.mark.parametrize("name", TASKS)
def test_every_example_is_used_once_an_epoch_at_every_number_of_workers(
    name: str, prepared: dict[str, Prepared]
) -> None:
    task = make(name, folders(prepared[name]))
    examples = task.examples("train")
    of_worlds = []
    for world_size in (1, 3):
        rows: list[int] = []
        for rank in range(world_size):
            steps = iterate_steps(
                examples, task.collate, task.loss_column, BATCH, 1, rank=rank, world_size=world_size,
                of_epoch=task.epoch,
            )  # fmt: skip
            for step in steps:
                if step.epoch:
                    break
                rows += [int(row) for part, share in zip(step.rows, step.shares, strict=True) if share for row in part]
        of_worlds.append(sorted(rows))
    assert of_worlds[0] == of_worlds[1] == list(range(len(task.epoch(examples, 1, 0))))


@pytest.mark.parametrize("pooling", Pooling)
def test_ten_texts_are_learned_by_heart(pooling: Pooling, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    texts = [" ".join(WORDS[i] for i in random.permutation(len(WORDS))) for _ in range(10)]  # only the order tells
    (tmp_path / "a.tsv").write_text("".join(f"{text}\t{i % 3}\n" for i, text in enumerate(texts)))
    (tmp_path / "b.tsv").write_text("other\t0\n")
    source = {"train": RecordSource("a.tsv"), "validation": RecordSource("b.tsv")}
    corpus = LabelledConfig(path=str(tmp_path), columns=["text", "label"], **source)
    made = prepare_labelled(corpus, TextTokenizerConfig(vocab_size=300), tmp_path / "out")
    task = make("classification", folders(made), dataclasses.replace(MODEL, dropout=0.0, pooling=pooling))
    losses = learn(task, 60)
    assert losses[0] == pytest.approx(np.log(3), abs=0.1) and losses[-1] < 0.01


def test_the_masked_tokens_of_ten_pieces_are_learned_by_heart(prepared: dict[str, Prepared]) -> None:
    task = make("masked_language_model", folders(prepared["masked_language_model"]))
    losses = learn(make("masked_language_model", folders(prepared["masked_language_model"]),
                        dataclasses.replace(MODEL, dropout=0.0)), 120)  # fmt: skip
    assert task.selects.name == "masked_accuracy"
    assert losses[0] == pytest.approx(np.log(291), abs=0.5) and losses[-1] < 0.1


def learn(task: Task, steps: int) -> list[float]:
    """The loss of ten examples at each step of a training on them alone."""
    torch.manual_seed(0)
    model = task.model()
    objective = task.objective(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    batch = task.collate(task.epoch(task.examples("train"), 0, 0), range(10))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = objective(batch)
        (loss.total / loss.num_tokens).backward()
        optimizer.step()
        losses.append(loss.total.item() / loss.num_tokens)
    return losses


def random_model(task: Task) -> Any:
    torch.manual_seed(5)
    model = task.model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def validate_on(name: str, stages: Mapping[str, Path]) -> Evaluation:
    task = make(name, stages)
    return task.validate(random_model(task))


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_two_workers_validate_as_one_does(name: str, prepared: dict[str, Prepared]) -> None:
    stages = folders(prepared[name])
    alone = validate_on(name, stages)
    first, second = run_ranks(validate_on, 2, name, stages)
    assert first.values() == second.values() == pytest.approx(alone.values(), rel=1e-6)
    assert first.samples == alone.samples


@pytest.mark.parametrize("name", TASKS)
def test_validation_and_evaluation_are_equal_and_have_baselines(
    name: str, prepared: dict[str, Prepared], tmp_path: Path
) -> None:
    stages = folders(prepared[name])
    task = make(name, stages)
    model = random_model(task)
    labels = prepared[name].corpus.manifest["counts"].get("labels")
    about: dict[str, Any] = {"task": name, **({"labels": labels} if labels else {})}
    save_model(tmp_path / "model", MODEL, model.state_dict(), stages["tokenizer"], about)
    evaluated = task.evaluate(tmp_path / "model", "validation", map, lambda *_: None)
    assert task.validate(model).values() == pytest.approx(evaluated.values(), rel=1e-5)
    assert evaluated.baselines and not is_language_model(tmp_path / "model")
    test = task.evaluate(tmp_path / "model", "test", map, lambda *_: None)
    if name == "classification":
        outputs = [json.loads(line) for line in test.outputs]
        assert len(outputs) == test.num_examples == 30
        assert min(one["probability"] for one in outputs) >= 0.5 and {one["label"] for one in outputs} <= {"neg", "pos"}
        assert test.baselines == prepared[name].corpus.manifest["counts"]["baselines"]["test"]
        test.pictures["confusion"](tmp_path / "confusion.png")
        assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
        texts = [line.split("\t")[0] for line in ["good film", "the dull story of music"]]
        classifier = Classifier.load(tmp_path / "model", CPU)
        for probabilities in classifier.probabilities(texts):
            assert sum(probabilities.values()) == pytest.approx(1.0)
        with pytest.raises(UserError, match="transloom classify"):
            load_language_model(tmp_path / "model", CPU)
        with pytest.raises(UserError, match="transloom classify"):
            Translator.load(tmp_path / "model", CPU)
        with pytest.raises(UserError, match=r"^format=huggingface: "):
            export(tmp_path / "model", tmp_path / "exported", Format.huggingface)
    else:
        assert test.baselines.keys() == {"most frequent token"}
        with pytest.raises(UserError, match="task=masked_language_model"):
            load_classifier(tmp_path / "model", CPU)


def test_a_classifier_takes_the_stack_of_either_language_model_and_a_fresh_head(
    prepared: dict[str, Prepared], tmp_path: Path
) -> None:
    stages = folders(prepared["masked_language_model"])
    masked = make("masked_language_model", stages)
    weights = random_model(masked).state_dict()
    save_model(tmp_path / "masked", MODEL, weights, stages["tokenizer"], {"task": "masked_language_model"})
    task = make("classification", folders(prepared["classification"]))
    with torch.device("meta"):
        state = task.model().state_dict()
    initial = fitting(read_model(tmp_path / "masked"), MODEL, state, task.tokenizer, with_embeddings=True)
    vocab_size = load_text_tokenizer(stages["tokenizer"]).vocab_size
    assert initial.fresh == ["head"] and list(initial.left_out) == [f"embedding.weight[{vocab_size}:]"]
    assert all(torch.equal(tensor, weights[name][: len(tensor)]) for name, tensor in initial.weights.items())
    # An untied projection to the vocabulary is left out; another classifier's head, too.
    untied = dataclasses.replace(MODEL, tied=False)
    of_language = dict(weights) | {"output": torch.zeros(vocab_size + 1, 32), "head": torch.zeros(2, 32)}
    save_model(tmp_path / "untied", untied, of_language, stages["tokenizer"], {})
    initial = fitting(read_model(tmp_path / "untied"), MODEL, state, task.tokenizer, with_embeddings=True)
    assert initial.fresh == ["head"] and {"output", "head"} <= initial.left_out.keys()
    with pytest.raises(UserError, match=r"^model\.causal: "):
        causal = dataclasses.replace(MODEL, causal=True)
        fitting(read_model(tmp_path / "masked"), causal, state, task.tokenizer, with_embeddings=True)


def test_a_damaged_list_of_labels_is_refused(prepared: dict[str, Prepared], tmp_path: Path) -> None:
    stages = folders(prepared["classification"])
    weights = make("classification", stages).model().state_dict()
    for labels, message in ((["a", "b", "c"], "head"), ([1, 2], "labels"), ([], "classification")):
        about = {"task": "classification", "labels": labels}
        save_model(tmp_path / "model", MODEL, weights, stages["tokenizer"], about)
        assert read_json(tmp_path / "model" / "config.json")["labels"] == labels
        with pytest.raises(UserError, match=message):
            load_classifier(tmp_path / "model", CPU)
