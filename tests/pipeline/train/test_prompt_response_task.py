"""Prompts and responses by the task itself, of a decoder-only model and of an encoder-decoder."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks

from transloom.model.build import ModelConfig
from transloom.model.config import DecoderConfig, Normalization, Positions, TransformerConfig
from transloom.model.flops import training_flops
from transloom.pipeline.data.batches import BatchConfig, iterate_steps
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.data.prepare_prompts import COLUMNS, open_answers, open_texts, prepare_prompts
from transloom.pipeline.data.prompt_batches import PromptExamples, long_examples, room_of
from transloom.pipeline.data.prompts import PromptsConfig, ResponseMetric, TooLong
from transloom.pipeline.data.records import RecordSource
from transloom.pipeline.data.shards import open_shards
from transloom.pipeline.data.text_tokenizer import TextTokenizerConfig, TextTokenizerKind, load_text_tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import NotBuilt
from transloom.pipeline.generate.responses import respond
from transloom.pipeline.model_folder import load_model, save_model
from transloom.pipeline.tasks.prompt_response import baseline_scores, prompt_response
from transloom.pipeline.tasks.task import Evaluation, Score, Task
from transloom.pipeline.train.checkpoint import load_checkpoint, newest_checkpoint
from transloom.pipeline.train.engine import EngineConfig, EngineName, make_engine
from transloom.pipeline.train.loop import train
from transloom.pipeline.train.optimizer import OptimizerConfig, Precision, PrecisionConfig
from transloom.pipeline.train.session import Reports, Session, TrainConfig, TrainState

DECODER = DecoderConfig(
    layers=2, d_model=32, d_ff=64, num_heads=4, key_value_heads=2, dropout=0.1, max_positions=48,
    normalization=Normalization.rms, positions=Positions.rotary, bias=False,
)  # fmt: skip
PAIRS = TransformerConfig(encoder_layers=1, decoder_layers=1, d_model=32, d_ff=64, num_heads=4, dropout=0.1)
BATCH = BatchConfig(tokens=256, micro_tokens=64)
CPU = torch.device("cpu")
TORCH = EngineConfig(EngineName.torch)
WORDS = ["sun", "moon", "sea", "sand", "käse", "def", "f(x):", "return"]


def write_records(file: Path, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        words = [WORDS[i] for i in random.integers(0, len(WORDS), random.integers(1, 20))]
        lines.append(json.dumps({"text": " ".join(words) + f" {seed}{number}", "code": " ".join(words[::-2])}) + "\n")
    file.write_text("".join(lines))


def corpus_of(folder: Path, **settings: Any) -> PromptsConfig:
    return PromptsConfig(
        name="words",
        path=str(folder),
        train=RecordSource("train.jsonl"),
        validation=RecordSource("validation.jsonl"),
        test=RecordSource("test.jsonl"),
        template="{text}\n> ",
        response="code",
        metric=settings.pop("metric", ResponseMetric.exact_match),
        max_response_tokens=16,
        validation_examples=settings.pop("validation_examples", 6),
        **settings,
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> PromptsConfig:
    folder = tmp_path_factory.mktemp("corpus")
    for seed, (split, count) in enumerate({"train": 60, "validation": 11, "test": 9}.items()):
        write_records(folder / f"{split}.jsonl", count, seed)
    return corpus_of(folder)


@pytest.fixture(scope="module")
def prepared(corpus: PromptsConfig, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    out = tmp_path_factory.mktemp("out")
    return prepare_prompts(corpus, TextTokenizerConfig(vocab_size=290), out, baseline_scores, shard_examples=25)


def folders(prepared: Prepared) -> dict[str, Path]:
    return {name: getattr(prepared, name).folder for name in ("corpus", "tokenizer", "shards")}


def make(stages: Mapping[str, Path], corpus: PromptsConfig, model: ModelConfig = DECODER) -> Task:
    return prompt_response(lambda stage: stages[stage], corpus=corpus, model=model, batch=BATCH, label_smoothing=0.0)


# Data


def test_the_stages_are_made_once_and_say_what_they_hold(corpus: PromptsConfig, tmp_path: Path) -> None:
    tokenizer = TextTokenizerConfig(vocab_size=290)
    with pytest.raises(NotBuilt):
        prepare_prompts(corpus, tokenizer, tmp_path, baseline_scores, only_find=True)
    made = prepare_prompts(corpus, tokenizer, tmp_path, baseline_scores)
    found = prepare_prompts(corpus, tokenizer, tmp_path, baseline_scores, only_find=True)
    assert folders(found) == folders(made)
    counts = made.corpus.manifest["counts"]
    assert {split: size["examples"] for split, size in counts["splits"].items()} == {
        "train": 60, "validation": 11, "test": 9
    }  # fmt: skip
    assert counts["tail"] == "\n> " and counts["read"] == 60
    assert counts["baselines"]["test"].keys() == {"response of the nearest training prompt"}
    prompts, responses = open_texts(made.corpus.folder, "test")
    assert [[response] for response in responses] == open_answers(made.corpus.folder, "test")
    assert all(prompt.endswith("\n> ") for prompt in prompts)


def test_settings_of_the_training_make_other_shards_of_the_same_corpus(corpus: PromptsConfig, tmp_path: Path) -> None:
    tokenizer = TextTokenizerConfig(TextTokenizerKind.characters)
    made = prepare_prompts(corpus, tokenizer, tmp_path, baseline_scores)
    shorter = dataclasses.replace(corpus, max_response_tokens=8)
    other = prepare_prompts(shorter, tokenizer, tmp_path, baseline_scores)
    assert other.corpus.folder == made.corpus.folder and other.tokenizer.folder == made.tokenizer.folder
    assert other.shards.folder != made.shards.folder


def test_records_of_validation_are_left_out_of_train_unless_they_are_to_stay(tmp_path: Path) -> None:
    write_records(tmp_path / "train.jsonl", 12, 0)
    lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "validation.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "test.jsonl").write_text(lines[2])
    tokenizer = TextTokenizerConfig(TextTokenizerKind.characters)
    for keep, left in ((False, 9), (True, 12)):
        corpus = corpus_of(tmp_path, keep_overlap=keep)
        counts = prepare_prompts(corpus, tokenizer, tmp_path / "out", baseline_scores).corpus.manifest["counts"]
        assert counts["splits"]["train"]["examples"] == left
        assert counts["overlap"] == {"in_test": 1, "in_validation": 2}
        assert counts["dropped"] == ({} if keep else {"in_test": 1, "in_validation": 2})


def test_an_example_is_read_as_a_prompt_with_its_response_and_only_the_response_is_predicted(
    prepared: Prepared, corpus: PromptsConfig
) -> None:
    tokenizer = load_text_tokenizer(prepared.tokenizer.folder)
    task = make(folders(prepared), corpus)
    examples = task.epoch(task.examples("train"), 0, 0)
    batch: Any = task.collate(examples, [3, 1])
    prompts, responses = open_texts(prepared.corpus.folder, "train")
    start = label = 0
    for row in (3, 1):
        assert isinstance(examples, PromptExamples)
        place = int(examples.rows[row])
        ids = tokenizer.encode([prompts[place].removesuffix("\n> "), "\n> ", responses[place]])
        expected = [*np.concatenate(ids).tolist(), tokenizer.end_of_text]
        length, asked = len(expected) - 1, len(ids[2]) + 1
        assert batch.tokens[start : start + length].tolist() == expected[:-1]
        assert batch.labels[label : label + asked].tolist() == expected[-asked:]
        assert batch.places[label : label + asked].tolist() == [*range(start + length - asked, start + length)]
        start, label = start + length, label + asked
    assert len(batch.labels) == label and batch.real_tokens == start


@pytest.mark.parametrize("model", [DECODER, PAIRS], ids=["decoder", "encoder-decoder"])
def test_an_example_does_not_see_its_neighbours(prepared: Prepared, corpus: PromptsConfig, model: ModelConfig) -> None:
    task = make(folders(prepared), corpus, model)
    torch.manual_seed(2)
    objective = task.objective(task.model()).eval()
    examples = task.epoch(task.examples("train"), 0, 0)
    with torch.no_grad():
        together = objective(task.collate(examples, [0, 5, 9]))
        alone = [objective(task.collate(examples, [row])) for row in (0, 5, 9)]
    assert float(together.total) == pytest.approx(sum(float(one.total) for one in alone), rel=1e-5)
    assert together.num_tokens == sum(one.num_tokens for one in alone) == int(examples.lengths[[0, 5, 9], 0].sum())


def test_every_example_is_used_once_an_epoch_at_every_number_of_workers(
    prepared: Prepared, corpus: PromptsConfig
) -> None:
    task = make(folders(prepared), corpus)
    for world_size in (1, 3):
        seen: list[int] = []
        for rank in range(world_size):
            for step in iterate_steps(
                task.examples("train"), task.collate, task.loss_column, BATCH, 1, rank=rank, world_size=world_size,
                of_epoch=task.epoch,
            ):  # fmt: skip
                if step.epoch:
                    break
                seen += [int(row) for rows, share in zip(step.rows, step.shares, strict=True) if share for row in rows]
        assert sorted(seen) == list(range(len(task.epoch(task.examples("train"), 1, 0))))


def test_a_training_without_an_example_that_fits_is_refused(prepared: Prepared) -> None:
    examples = open_shards(prepared.shards.folder, "train", COLUMNS)

    class Nothing:
        lengths, columns = np.zeros((0, 2), np.int32), ("response", "text")

        def __len__(self) -> int:
            return 0

    steps = iterate_steps(
        examples,
        lambda *_: None,
        "response",
        BatchConfig(64, 64),
        1,
        rank=0,
        world_size=1,
        of_epoch=lambda *_: Nothing(),
    )
    with pytest.raises(UserError, match=r"^corpus\.train: all training examples are too long"):
        next(steps)


@pytest.mark.parametrize("too_long", list(TooLong))
def test_long_prompts_fit_after_all_and_are_told(prepared: Prepared, corpus: PromptsConfig, too_long: TooLong) -> None:
    small = dataclasses.replace(DECODER, max_positions=24)
    config = dataclasses.replace(corpus, too_long=too_long)
    shards = prepared.shards.folder
    room = room_of(shards, small, config)
    assert (room.prompt, room.response) == (8, 16)
    task = make(folders(prepared), config, small)
    examples = task.epoch(task.examples("train"), 0, 0)
    assert isinstance(examples, PromptExamples)
    whole = task.examples("train")
    assert int(examples.lengths[:, 1].max()) <= 24
    sizes = [(len(whole.get("prompt", row)), len(whole.get("response", row))) for row in range(60)]
    number = sum(prompt > 8 and response <= 16 for prompt, response in sizes)
    kept = sum(response <= 16 and (prompt <= 8 or too_long is not TooLong.drop) for prompt, response in sizes)
    assert len(examples) == kept and 0 < number < 60
    assert any(line.startswith(f"train: {number} of 60") for line in long_examples(shards, small, config))
    tail = load_text_tokenizer(prepared.tokenizer.folder).encode(["\n> "])[0].tolist()
    assert all(examples.get("prompt", row)[-len(tail) :].tolist() == tail for row in range(len(examples)))


def test_a_context_without_room_is_refused(prepared: Prepared, corpus: PromptsConfig) -> None:
    with pytest.raises(UserError, match=r"^corpus\.max_response_tokens:"):
        make(folders(prepared), corpus, dataclasses.replace(DECODER, max_positions=17))


# Training


def run(
    folder: Path, stages: Mapping[str, Path], corpus: PromptsConfig, model: ModelConfig = DECODER, stop_at: int = 0
) -> dict[str, Any]:
    """Trains as a worker does, from the newest checkpoint if there is one: losses and weights at the end."""
    task = make(stages, corpus, model)
    torch.manual_seed(1)
    made_model = task.model()
    state, initial = TrainState(), None
    if (newest := newest_checkpoint(folder / "checkpoints")) is not None:
        initial, saved = load_checkpoint(newest)
        state = TrainState.of(saved)
    objective = task.objective(made_model).train()
    made = make_engine(
        objective, OptimizerConfig(weight_decay=0.1, clip_norm=1.0), PrecisionConfig(dtype=Precision.fp32), TORCH, CPU,
        initial,
    )  # fmt: skip
    losses: dict[int, float] = {}

    def metrics(values: Mapping[str, float], step: int) -> None:
        if "train/loss" in values:
            losses[step] = values["train/loss"]

    session = Session(
        TrainConfig(max_steps=10, log_every=1, validate_every=100, checkpoint_every=4, label_smoothing=0.0),
        engine=made,
        state=state,
        folder=folder,
        metadata={},
        selects=task.selects,
        validate=lambda step, path: Evaluation(1.0, {task.selects.name: Score(task.selects.name, 2.0)}, 1),
        reports=Reports(metrics, lambda step, _: None, lambda _: None),
        flops=lambda tokens: training_flops(model, made_model.vocab_size, *tokens.values()),
        stop=lambda: state.step == stop_at,
    )
    reason = train(session, task, BATCH, 3, lambda step: 3e-3)
    return {"reason": reason, "losses": losses, "weights": made.weights(), "tokens": state.tokens}


@pytest.mark.parametrize("model", [DECODER, PAIRS], ids=["decoder", "encoder-decoder"])
def test_stopping_and_resuming_changes_no_bit(
    prepared: Prepared, corpus: PromptsConfig, tmp_path: Path, model: ModelConfig
) -> None:
    stages = folders(prepared)
    whole = run(tmp_path / "whole", stages, corpus, model)
    stopped = run(tmp_path / "stopped", stages, corpus, model, stop_at=6)
    assert stopped["reason"] == "stopped"
    resumed = run(tmp_path / "stopped", stages, corpus, model)
    assert all(torch.equal(whole["weights"][name], tensor) for name, tensor in resumed["weights"].items())
    assert stopped["losses"] | resumed["losses"] == whole["losses"]
    assert resumed["tokens"] == whole["tokens"] and resumed["tokens"].keys() == {"response", "text"}


@pytest.mark.slow
def test_two_workers_train_as_one_does(prepared: Prepared, corpus: PromptsConfig, tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", folders(prepared), corpus)
    first, _ = run_ranks(run, 2, tmp_path / "ranks", folders(prepared), corpus)
    assert max(float((alone["weights"][name] - x).abs().max()) for name, x in first["weights"].items()) < 2e-5
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5) and first["tokens"] == alone["tokens"]


@pytest.mark.parametrize("model", [DECODER, PAIRS], ids=["decoder", "encoder-decoder"])
def test_ten_examples_are_learned_by_heart_and_said_again(tmp_path: Path, model: ModelConfig) -> None:
    for split, count in {"train": 10, "validation": 2, "test": 1}.items():
        write_records(tmp_path / f"{split}.jsonl", count, 7)
    corpus = corpus_of(tmp_path, keep_overlap=True)
    ten = prepare_prompts(corpus, TextTokenizerConfig(vocab_size=290), tmp_path / "out", baseline_scores)
    task = make(folders(ten), corpus, dataclasses.replace(model, dropout=0.0))
    torch.manual_seed(0)
    net = task.model()
    objective = task.objective(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, betas=(0.9, 0.95))
    examples = task.epoch(task.examples("train"), 0, 0)
    batch: Any = task.collate(examples, range(10))
    for _ in range(150):
        optimizer.zero_grad()
        loss = objective(batch)
        (loss.total / loss.num_tokens).backward()
        optimizer.step()
    validated = task.validate(net.eval())
    assert validated.scores["exact_match"].value == 100.0
    assert validated.loss is not None and validated.loss < 0.1


# Evaluation


def validate_on(stages: Mapping[str, Path], corpus: PromptsConfig, model: ModelConfig = DECODER) -> Evaluation:
    task = make(stages, corpus, model)
    torch.manual_seed(5)
    return task.validate(task.model().eval())


@pytest.mark.parametrize("model", [DECODER, PAIRS], ids=["decoder", "encoder-decoder"])
@pytest.mark.parametrize("metric", [ResponseMetric.exact_match, ResponseMetric.squad])
def test_validation_and_evaluation_are_what_the_examples_come_to_one_by_one(
    prepared: Prepared, corpus: PromptsConfig, tmp_path: Path, model: ModelConfig, metric: ResponseMetric
) -> None:
    config = dataclasses.replace(corpus, metric=metric)
    stages = folders(prepared)
    task = make(stages, config, model)
    torch.manual_seed(5)
    net = task.model().eval()
    tokenizer = load_text_tokenizer(stages["tokenizer"])
    objective = task.objective(net).eval()
    with torch.no_grad():
        losses = {}
        for split in ("validation", "test"):
            room = room_of(stages["shards"], model, config)
            is_decoder = isinstance(model, DecoderConfig)
            examples = PromptExamples(task.examples(split), room, tokenizer.end_of_text, is_decoder, False)
            parts = [objective(task.collate(examples, [row])) for row in range(len(examples))]
            losses[split] = sum(float(part.total) for part in parts) / sum(part.num_tokens for part in parts)
    validated = task.validate(net)
    assert validated.loss == pytest.approx(losses["validation"], rel=1e-5)
    assert validated.num_examples == 6 and len(validated.outputs) == 6
    save_model(tmp_path / "model", model, net.state_dict(), stages["tokenizer"], {"task": "prompt_response"})
    evaluated = task.evaluate(tmp_path / "model", "test", map, lambda *_: None)
    assert evaluated.loss == pytest.approx(losses["test"], rel=1e-5)
    records = [json.loads(line) for line in evaluated.outputs]
    loaded, _, _ = load_model(tmp_path / "model", CPU, None, load_text_tokenizer)
    prompts = [examples.get("prompt", row) for row in range(len(examples))]
    one_by_one = [respond(loaded, tokenizer, [prompt], 16)[0] for prompt in prompts]
    assert [record["response"] for record in records] == one_by_one
    assert evaluated.scores.keys() == {"loss", "exact_match", "parses" if metric is corpus.metric else "f1"}
    assert evaluated.num_examples == 9 and task.selects.name in evaluated.scores
    assert evaluated.baselines == prepared.corpus.manifest["counts"]["baselines"]["test"]
    assert all(len(tokenizer.encode([text])[0]) <= 16 for text in one_by_one)


@pytest.mark.slow
def test_two_workers_validate_as_one_does(prepared: Prepared, corpus: PromptsConfig) -> None:
    alone = validate_on(folders(prepared), corpus)
    first, second = run_ranks(validate_on, 2, folders(prepared), corpus)
    assert first == second and first.outputs == alone.outputs and first.samples == alone.samples
    assert first.values() == pytest.approx(alone.values(), rel=1e-6)


def test_a_response_ends_at_the_end_of_text(prepared: Prepared) -> None:
    class Fixed:
        """A model that says the same tokens whatever the prompt."""

        config = DECODER

    tokenizer = load_text_tokenizer(prepared.tokenizer.folder)
    says = [*tokenizer.encode(["sea"])[0].tolist(), tokenizer.end_of_text, *tokenizer.encode(["sand"])[0].tolist()]

    class Decoding:
        def __init__(self, rows: int) -> None:
            self.rows, self.step_number = rows, 0

        @property
        def logits(self) -> torch.Tensor:
            return torch.nn.functional.one_hot(
                torch.full((self.rows,), says[self.step_number]), tokenizer.vocab_size
            ).float()

        def step(self, tokens: torch.Tensor) -> torch.Tensor:
            self.step_number += 1
            return self.logits

        def reorder(self, rows: torch.Tensor, sentences: torch.Tensor | None = None) -> None:
            self.rows = len(rows)

    model: Any = Fixed()
    model.parameters = lambda: iter([torch.zeros(1)])
    model.start_decoding = lambda tokens, layout: Decoding(len(layout.lengths))
    assert respond(model, tokenizer, [np.array([1, 2]), np.array([3])], 30) == ["sea", "sea"]
