"""Language modelling by the task itself on documents of a folder: one is longer than many contexts."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transloom.model.config import DecoderConfig, Normalization, Positions
from transloom.model.flops import training_flops
from transloom.model.losses import label_smoothed_cross_entropy
from transloom.pipeline.data.batches import BatchConfig, iterate_steps
from transloom.pipeline.data.documents import DocumentsConfig, DocumentsKind, HeldOutBy, HeldOutConfig, SourceConfig
from transloom.pipeline.data.ngram import ngram_bits_per_byte
from transloom.pipeline.data.pieces import TextPieces, collate_pieces, pieces_of
from transloom.pipeline.data.prepare import Prepared
from transloom.pipeline.data.prepare_documents import BASELINE, prepare_documents
from transloom.pipeline.data.text_tokenizer import TextTokenizerConfig, TextTokenizerKind, load_text_tokenizer
from transloom.pipeline.errors import UserError
from transloom.pipeline.files import NotBuilt, read_json
from transloom.pipeline.generate.translator import Translator
from transloom.pipeline.model_folder import load_language_model, save_model
from transloom.pipeline.tasks.language_model import BITS_PER_BYTE, language_model, open_tokens
from transloom.pipeline.tasks.task import Evaluation, Score, Task
from transloom.pipeline.train.checkpoint import load_checkpoint, newest_checkpoint
from transloom.pipeline.train.engine import EngineConfig, EngineName, make_engine
from transloom.pipeline.train.loop import train
from transloom.pipeline.train.optimizer import OptimizerConfig, Precision, PrecisionConfig
from transloom.pipeline.train.session import Reports, Session, TrainConfig, TrainState

CONTEXT = 32
MODEL = DecoderConfig(
    layers=2, d_model=32, d_ff=64, num_heads=4, key_value_heads=2, dropout=0.1, max_positions=CONTEXT,
    normalization=Normalization.rms, positions=Positions.rotary, bias=False,
)  # fmt: skip
BATCH = BatchConfig(tokens=256, micro_tokens=64)
CPU = torch.device("cpu")
TORCH = EngineConfig(EngineName.torch)
WORDS = ["sun", "moon", "sea", "sand", "käse", "\n\n", "def f(x):", "    return x"]


def write_corpus(folder: Path) -> DocumentsConfig:
    random = np.random.default_rng(0)
    lengths = [*random.integers(1, 40, 30), 900]
    for number, length in enumerate(lengths):
        text = " ".join(WORDS[i] for i in random.integers(0, len(WORDS), length)) + f" {number}"
        (folder / f"{number:02d}.txt").write_text(text)
    held_out = HeldOutConfig(validation=0.2, test=0.2)
    source = SourceConfig(str(folder / "*.txt"))
    return DocumentsConfig(kind=DocumentsKind.text, name="words", train=source, held_out=held_out)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> DocumentsConfig:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def prepared(corpus: DocumentsConfig, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    tokenizer = TextTokenizerConfig(vocab_size=280)
    return prepare_documents(corpus, tokenizer, tmp_path_factory.mktemp("out"), shard_bytes=2000)


def folders(prepared: Prepared) -> dict[str, Path]:
    return {name: getattr(prepared, name).folder for name in ("corpus", "tokenizer", "shards")}


def make(stages: Mapping[str, Path], model: DecoderConfig = MODEL) -> Task:
    return language_model(lambda stage: stages[stage], model=model, micro_tokens=64, label_smoothing=0.0)


# Data


def test_the_stages_are_made_once_and_say_what_they_hold(corpus: DocumentsConfig, tmp_path: Path) -> None:
    tokenizer = TextTokenizerConfig(vocab_size=280)
    with pytest.raises(NotBuilt):
        prepare_documents(corpus, tokenizer, tmp_path, only_find=True)
    made = prepare_documents(corpus, tokenizer, tmp_path, shard_bytes=2000)
    found = prepare_documents(corpus, tokenizer, tmp_path, shard_bytes=2000, only_find=True)
    assert folders(found) == folders(made)
    counts = made.corpus.manifest["counts"]
    documents = {split: size["documents"] for split, size in counts["splits"].items()}
    assert documents.keys() == {"train", "validation", "test"} and sum(documents.values()) == counts["read"] == 31
    assert counts["held_out"] == {"validation": documents["validation"], "test": documents["test"]}
    texts = {split: list(texts_of(made, split)) for split in documents}
    expected = ngram_bits_per_byte(texts["train"], texts["test"])
    assert counts["baselines"]["test"] == {BASELINE: pytest.approx(expected)}
    shards = made.shards.manifest["counts"]["splits"]["train"]
    assert shards["shards"] > 1 and shards["documents"] == documents["train"]
    assert shards["text_tokens"] == int(open_tokens(made.shards.folder, "train").lengths.sum())


def texts_of(prepared: Prepared, split: str):
    from transloom.pipeline.data.document_store import open_documents

    return open_documents(prepared.corpus.folder, split)


def test_another_tokenizer_keeps_the_corpus(corpus: DocumentsConfig, tmp_path: Path) -> None:
    first = prepare_documents(corpus, TextTokenizerConfig(vocab_size=280), tmp_path)
    second = prepare_documents(corpus, TextTokenizerConfig(TextTokenizerKind.characters), tmp_path)
    assert second.corpus.folder == first.corpus.folder and second.corpus.skipped
    assert second.shards.folder != first.shards.folder
    copied = TextTokenizerConfig(TextTokenizerKind.file, path=str(first.tokenizer.folder))
    third = prepare_documents(corpus, copied, tmp_path)
    assert third.shards.folder == first.shards.folder, "the same tokenizer gives the same shards"


def test_another_end_of_text_makes_other_shards(corpus: DocumentsConfig, tmp_path: Path) -> None:
    learnt = prepare_documents(corpus, TextTokenizerConfig(vocab_size=280), tmp_path)
    settings = json.loads((learnt.tokenizer.folder / "tokenizer.json").read_text())
    first = settings["added_tokens"][0]
    settings["added_tokens"].append({**first, "id": 280, "content": "<|other|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings))
    ends = {}
    for name in (first["content"], "<|other|>"):
        config = TextTokenizerConfig(TextTokenizerKind.file, path=str(tmp_path / "tokenizer.json"), end_of_text=name)
        ends[name] = prepare_documents(corpus, config, tmp_path)
    folders_of_shards = {prepared.shards.folder for prepared in ends.values()}
    assert len(folders_of_shards) == 2
    last = {
        name: int(open_tokens(prepared.shards.folder, "train").get("tokens", 0)[-1]) for name, prepared in ends.items()
    }
    assert last == {first["content"]: first["id"], "<|other|>": 280}


def test_a_corpus_without_a_test_split_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("To be, or not to be. " * 100)
    config = DocumentsConfig(
        kind=DocumentsKind.text,
        name="one",
        train=SourceConfig(str(tmp_path / "a.txt")),
        held_out=HeldOutConfig(by=HeldOutBy.tail, validation=0.1, test=0.0),
    )
    prepared = prepare_documents(config, TextTokenizerConfig(TextTokenizerKind.characters), tmp_path / "out")
    assert prepared.shards.manifest["counts"]["splits"].keys() == {"train", "validation"}
    sizes = prepared.corpus.manifest["counts"]["splits"]
    assert (sizes["train"]["bytes"], sizes["validation"]["bytes"]) == (1890, 210)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"^corpus\.train: no document is left"),
        (b"text \0 text", "NUL"),
        (b"caf\xe9 " * 50, "UTF-8"),
        (b"x" * 2000, "too_long"),
    ],
    ids=["empty", "binary", "latin-1", "too long"],
)
def test_what_is_no_text_is_an_error_that_names_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    config = DocumentsConfig(
        kind=DocumentsKind.text, name="bad", train=SourceConfig(str(tmp_path / "a.txt")), max_bytes=1000,
        held_out=HeldOutConfig(validation=0.0, test=0.0),
    )  # fmt: skip
    with pytest.raises(UserError, match=message) as raised:
        prepare_documents(config, TextTokenizerConfig(), tmp_path / "out")
    assert "a.txt" in str(raised.value)


def test_every_token_is_predicted_once_in_each_epoch_at_every_number_of_workers(prepared: Prepared) -> None:
    task = make(folders(prepared))
    documents = task.examples("train")
    cuts = []
    for epoch in range(2):
        of_ranks = []
        for world_size in (1, 3):
            seen = []
            for rank in range(world_size):
                steps = iterate_steps(
                    documents, task.collate, "text", BATCH, 1, rank=rank, world_size=world_size, epoch=epoch,
                    of_epoch=task.epoch,
                )  # fmt: skip
                for step in steps:
                    if step.epoch != epoch:
                        break
                    rows = [row for row, share in zip(step.rows, step.shares, strict=True) if share]
                    seen += [tuple(int(part[row]) for part in step.examples.pieces) for row in np.concatenate(rows)]
            of_ranks.append(sorted(seen))
        assert of_ranks[0] == of_ranks[1]
        covered = np.concatenate(
            [np.arange(start, start + length) + 10_000 * document for document, start, length in of_ranks[0]]
        )
        assert len(covered) == len(np.unique(covered)) == int(documents.lengths.sum())
        cuts.append(of_ranks[0])
    assert cuts[0] != cuts[1], "long documents are cut elsewhere in another epoch"


def test_a_batch_has_the_tokens_before_those_that_it_predicts(prepared: Prepared) -> None:
    documents = open_tokens(prepared.shards.folder, "train")
    tokenizer = load_text_tokenizer(prepared.tokenizer.folder)
    pieces = TextPieces(documents, pieces_of(documents.lengths[:, 0], CONTEXT), tokenizer.end_of_text)
    long = int(documents.lengths[:, 0].argmax())
    rows = np.flatnonzero(pieces.pieces.document == long)[:2]
    batch = collate_pieces(pieces, rows)
    tokens = documents.get("tokens", long)
    assert batch.labels.tolist() == tokens[: 2 * CONTEXT].tolist()
    expected = [tokenizer.end_of_text, *tokens[: 2 * CONTEXT - 1].tolist()]
    assert batch.tokens[: 2 * CONTEXT].tolist() == expected
    assert batch.layout.lengths[:2].tolist() == [CONTEXT, CONTEXT]


# Training: the laws of all tasks are in tests/test_task_laws.py


def run(folder: Path, stages: Mapping[str, Path], config: TrainConfig, stop_at: int = 0) -> dict[str, Any]:
    """Trains as a worker does, from the newest checkpoint if there is one: losses and weights at the end."""
    task = make(stages)
    torch.manual_seed(1)
    model = task.model()
    state, initial = TrainState(), None
    if (newest := newest_checkpoint(folder / "checkpoints")) is not None:
        initial, saved = load_checkpoint(newest)
        state = TrainState.of(saved)
    made = make_engine(
        task.objective(model).train(),
        OptimizerConfig(weight_decay=0.1, clip_norm=1.0),
        PrecisionConfig(dtype=Precision.fp32),
        TORCH,
        CPU,
        initial,
    )
    losses: dict[int, float] = {}

    def metrics(values: Mapping[str, float], step: int) -> None:
        if "train/loss" in values:
            losses[step] = values["train/loss"]

    session = Session(
        config,
        engine=made,
        state=state,
        folder=folder,
        metadata={},
        selects=task.selects,
        validate=lambda step, path: Evaluation(1.0, {"bits_per_byte": Score("bits_per_byte", 2.0)}, 1),
        reports=Reports(metrics, lambda step, _: None, lambda _: None),
        flops=lambda tokens: training_flops(model.config, model.vocab_size, *tokens.values()),
        stop=lambda: state.step == stop_at,
    )
    reason = train(session, task, BATCH, 3, lambda step: 3e-3)
    return {"reason": reason, "losses": losses, "weights": made.weights(), "tokens": state.tokens}


SHORT = TrainConfig(max_steps=12, log_every=1, validate_every=100, checkpoint_every=5, label_smoothing=0.0)


def test_stopping_in_the_midst_of_a_document_and_resuming_changes_no_bit(prepared: Prepared, tmp_path: Path) -> None:
    stages = folders(prepared)
    whole = run(tmp_path / "whole", stages, SHORT)
    stopped = run(tmp_path / "stopped", stages, SHORT, stop_at=7)
    assert stopped["reason"] == "stopped"
    task = make(stages)
    documents = task.examples("train")
    steps = iterate_steps(
        documents, task.collate, "text", BATCH, 3, rank=0, world_size=1, of_epoch=task.epoch
    )  # fmt: skip
    long = int(documents.lengths[:, 0].argmax())
    before = [next(steps) for _ in range(7)]
    assert {step.epoch for step in before} == {0}, "the stop is within the first epoch"
    rows = np.concatenate([row for step in before for row in step.rows])
    cut = before[0].examples.pieces.document
    assert 0 < np.sum(cut[rows] == long) < np.sum(cut == long), "the long document is in the midst of its pieces"
    resumed = run(tmp_path / "stopped", stages, SHORT)
    assert all(torch.equal(whole["weights"][name], tensor) for name, tensor in resumed["weights"].items())
    assert stopped["losses"] | resumed["losses"] == whole["losses"]
    assert resumed["tokens"] == whole["tokens"]


# Evaluation


def by_hand(prepared: Prepared, model: Any, split: str) -> list[float]:
    """The loss of each document in nats, each piece alone and without filler."""
    documents = open_tokens(prepared.shards.folder, split)
    tokenizer = load_text_tokenizer(prepared.tokenizer.folder)
    pieces = TextPieces(documents, pieces_of(documents.lengths[:, 0], CONTEXT), tokenizer.end_of_text)
    totals = [0.0] * len(documents)
    for row in range(len(pieces)):
        from transloom.pipeline.generate.language_model import pack

        hidden = model(*pack([pieces.get("input", row)], CPU))
        labels = torch.from_numpy(pieces.get("text", row).astype(np.int64))
        loss = label_smoothed_cross_entropy(hidden, model.output_weight, labels, 0.0)
        totals[int(pieces.pieces.document[row])] += float(loss.total)
    return totals


def test_validation_and_evaluation_are_what_the_pieces_come_to_one_by_one(prepared: Prepared, tmp_path: Path) -> None:
    stages = folders(prepared)
    task = make(stages)
    torch.manual_seed(5)
    model = task.model().eval()
    with torch.inference_mode():
        nats = {split: by_hand(prepared, model, split) for split in ("validation", "test")}
    validated = task.validate(model)
    sizes = {split: read_json(stages["shards"] / "manifest.json")["counts"]["splits"][split] for split in nats}
    expected = {split: sum(nats[split]) / math.log(2) / sizes[split]["bytes"] for split in nats}
    assert validated.scores["bits_per_byte"].value == pytest.approx(expected["validation"], rel=1e-5)
    assert validated.loss == pytest.approx(sum(nats["validation"]) / sizes["validation"]["text_tokens"], rel=1e-5)
    assert validated.scores["perplexity"].value == pytest.approx(math.exp(validated.loss or 0))
    assert len(validated.samples["prompt"]) == 5

    save_model(tmp_path / "model", MODEL, model.state_dict(), stages["tokenizer"], {"task": "language_model"})
    evaluated = task.evaluate(tmp_path / "model", "test", map, lambda *_: None)
    assert evaluated.scores["bits_per_byte"].value == pytest.approx(expected["test"], rel=1e-5)
    records = [json.loads(line) for line in evaluated.outputs]
    assert [record["bits"] for record in records] == pytest.approx([n / math.log(2) for n in nats["test"]], rel=1e-4)
    assert [record["bytes"] for record in records] == texts_of(prepared, "test").num_bytes.tolist()
    assert evaluated.baselines == prepared.corpus.manifest["counts"]["baselines"]["test"]
    assert BITS_PER_BYTE.is_better(1.5, 1.6) and BITS_PER_BYTE.are_trivial([8.5])


def test_a_model_folder_is_of_one_task(prepared: Prepared, tmp_path: Path) -> None:
    stages = folders(prepared)
    model = make(stages).model().eval()
    save_model(tmp_path / "model", MODEL, model.state_dict(), stages["tokenizer"], {"task": "language_model"})
    loaded = load_language_model(tmp_path / "model", CPU)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.model.state_dict().items())
    assert loaded.tokenizer.sha256 == load_text_tokenizer(stages["tokenizer"]).sha256
    with pytest.raises(UserError, match="transloom generate"):
        Translator.load(tmp_path / "model", CPU)
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    with pytest.raises(UserError, match=r"tokenizer_config\.json is missing or damaged"):
        load_language_model(tmp_path / "model", CPU)
